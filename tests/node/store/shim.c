// Counts the calls that change files and stops the process, or fails the call, at a chosen one (crash.py);
// or writes each of them down, so that a power cut can be played (powercut.py).
//
// Preloaded, it reaches what Python cannot: each write and fsync inside SQLite.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { kKill = 0, kTear = -1 };  // any other action is the errno of the failure

static long countdown = -1;  // calls left before the chosen one; negative: nothing is counted
static int action = kKill;
static int lasting = 0;      // a full disk stays full, a failed one fails once
static long counted = 0;

void fault_arm(long calls, int what, int stays) {
  action = what;
  lasting = stays;
  counted = 0;
  countdown = calls;
}

long fault_counted(void) { return counted; }

// One change in the log, followed by `first` and `second` bytes: a path, two paths, or what was written.
struct Change {
  uint64_t inode;
  uint64_t offset;
  uint32_t first;
  uint32_t second;
  uint32_t what;
  uint32_t unused;
};

static int log_fd = -1;

void fault_record(int fd) { log_fd = fd; }

// Whether this call is the chosen one. It does not return when the action is to kill.
static int Chosen(void) {
  if (countdown < 0) return 0;
  ++counted;
  if (countdown > 0) {
    --countdown;
    return 0;
  }
  if (action == kKill) kill(getpid(), SIGKILL);
  if (!lasting) countdown = -1;
  return 1;
}

static int IsFile(int fd) {
  struct stat status;
  return countdown >= 0 && fstat(fd, &status) == 0 && (S_ISREG(status.st_mode) || S_ISDIR(status.st_mode));
}

// What cannot be torn is not done: the process dies before it.
static int Fail(void) {
  if (action == kTear) kill(getpid(), SIGKILL);
  errno = action;
  return -1;
}

static void Note(char what, int fd, uint64_t offset, const void* first, size_t first_size,
                 const char* second) {
  if (log_fd < 0 || fd == log_fd) return;
  const int kept = errno;
  struct stat status = {0};
  if (fd >= 0) fstat(fd, &status);
  const size_t second_size = second ? strlen(second) : 0;
  const struct Change change = {status.st_ino, offset, first_size, second_size, what, 0};
  ssize_t (*put)(int, const void*, size_t) = dlsym(RTLD_NEXT, "write");
  put(log_fd, &change, sizeof change);
  put(log_fd, first, first_size);
  put(log_fd, second, second_size);
  errno = kept;
}

void fault_note(const char* text) { Note('n', -1, 0, text, strlen(text), NULL); }

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL_IF_CHOSEN(condition) \
  if ((condition) && Chosen()) {  \
    return Fail();                \
  }

// A torn write leaves the first half of the bytes and then the process dies.
#define WRITE(name, parameters, half, whole, at)        \
  ssize_t name parameters {                             \
    if (IsFile(fd) && Chosen()) {                       \
      if (action == kTear) (void)!(half);               \
      return Fail();                                    \
    }                                                   \
    const uint64_t offset = at;                         \
    const ssize_t done = whole;                         \
    if (done > 0) Note('w', fd, offset, data, done, 0); \
    return done;                                        \
  }

WRITE(write, (int fd, const void* data, size_t size), REAL(write)(fd, data, size / 2),
      REAL(write)(fd, data, size), lseek(fd, 0, SEEK_CUR))
WRITE(pwrite, (int fd, const void* data, size_t size, off_t at), REAL(pwrite)(fd, data, size / 2, at),
      REAL(pwrite)(fd, data, size, at), at)
WRITE(pwrite64, (int fd, const void* data, size_t size, off64_t at), REAL(pwrite64)(fd, data, size / 2, at),
      REAL(pwrite64)(fd, data, size, at), at)

#define CHANGE(name, condition, parameters, arguments, note) \
  int name parameters {                                      \
    FAIL_IF_CHOSEN(condition)                                \
    const int outcome = REAL(name) arguments;                \
    if (outcome == 0) note;                                  \
    return outcome;                                          \
  }

CHANGE(ftruncate, IsFile(fd), (int fd, off_t size), (fd, size), Note('t', fd, size, 0, 0, 0))
CHANGE(ftruncate64, IsFile(fd), (int fd, off64_t size), (fd, size), Note('t', fd, size, 0, 0, 0))
CHANGE(fsync, IsFile(fd), (int fd), (fd), Note('s', fd, 0, 0, 0, 0))
CHANGE(fdatasync, IsFile(fd), (int fd), (fd), Note('s', fd, 0, 0, 0, 0))
CHANGE(rename, 1, (const char* from, const char* to), (from, to), Note('r', -1, 0, from, strlen(from), to))
CHANGE(unlink, 1, (const char* path), (path), Note('u', -1, 0, path, strlen(path), 0))
CHANGE(mkdir, 1, (const char* path, mode_t mode), (path, mode), Note('m', -1, 0, path, strlen(path), 0))

// The offset of an opening is 1 if the file was emptied.
#define OPEN(name)                                                                           \
  int name(const char* path, int flags, ...) {                                               \
    va_list list;                                                                            \
    va_start(list, flags);                                                                   \
    mode_t mode = va_arg(list, mode_t);                                                      \
    va_end(list);                                                                            \
    FAIL_IF_CHOSEN(flags & O_CREAT)                                                          \
    const int fd = REAL(name)(path, flags, mode);                                            \
    if (fd >= 0 && (flags & O_CREAT)) Note('o', fd, (flags & O_TRUNC) != 0, path, strlen(path), 0); \
    return fd;                                                                               \
  }

OPEN(open)
OPEN(open64)
