"""Every limit of the wire, each with its reason."""

MAX_FRAME_BYTES = 16 * 1024
"""One gossip frame. py-libp2p drops larger messages late or silently, and GossipSub repeats every byte to
each mesh neighbour; whatever is larger is a blob, pulled by digest."""

MAX_REQUEST_BYTES = 64 * 1024
"""One request on the sync stream: 1,024 message ids with room to spare."""

MAX_RESPONSE_BYTES = 1024 * 1024
"""One response on the sync stream: 64 frames of the largest size."""

MAX_CHARTER_BYTES = 16 * 1024
"""A charter travels in one sync response and is kept in memory; 40 layers are described by 7 shapes."""

MAX_COMMITTEE = 32
"""Members who decide a round: 32 signatures keep a certificate under one gossip frame."""

MAX_EXCLUDED = 64
"""Proven equivocators whom a decision names: two committees of them, 2.2 KiB of a certificate's 14."""

MAX_ACT_BYTES = 352
"""One act: an admission, the largest, takes 334."""

MAX_CHANGES = 4
"""Acts that one decision carries out: four admissions take 1.3 KiB of a certificate's 16."""

MAX_ACTS = 256
"""Acts held until a decision names them: 88 KiB."""

MAX_INVITE_USES = 1024
"""Peers that one invite lets in, and that one peer may invite: more are a party for `open`."""

MAX_SLATE = 64
"""Deltas in one slate: 64 entries of about 105 bytes and 32 attesters and signatures fill 12 KiB of 16."""

MAX_ANNOUNCEMENTS = 256
"""Announcements held for one round: an attestation naming each of them by id takes 8.5 KiB."""

MAX_MESSAGES_PER_ROUND = 4096
"""Messages held for one round: 256 announcements plus 8 attempts of 32 members and their votes make 1,100."""

MAX_INVENTORY = 4096
"""Message ids in one inventory response: 34 bytes each, 140 KiB."""

MAX_STALENESS = 2
"""Certified rounds by which a delta may lag behind; older ones answer a different adapter."""

CHUNK_BYTES = 256 * 1024
"""Bytes a peer can make another hash and keep before the first check (docs/spec/wire.md)."""

MAX_BLOB_BYTES = 4 * 1024**3
"""One blob: its 16,384 leaf hashes take 512 KiB, half of the largest response; a 2-bit base of 8 G weights
takes 2 GiB."""

MAX_ADAPTER_ELEMENTS = 2**28
"""Integers of one adapter (1 GiB of int32): a charter cannot make its readers allocate more. Rank 8 in four
subspaces on every linear of a 2 G base takes 22 million."""
