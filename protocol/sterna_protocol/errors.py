"""Whose fault it is: the class of an error is the policy the caller follows."""


class ProtocolError(Exception):
    """Base of all protocol errors; never raised itself."""


class LocalProtocolError(ProtocolError):
    """Our own code asked for something the protocol forbids."""


class RemoteProtocolError(ProtocolError):
    """A peer broke the protocol; the sender is penalised."""


class MalformedMessage(RemoteProtocolError):
    """Bytes that no correct peer sends."""


class BadSignature(RemoteProtocolError):
    """A signature that its named author did not make."""


class Untimely(ProtocolError):
    """Correct in itself, of no use now; nobody's fault, it is dropped."""
