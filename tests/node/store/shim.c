// Counts the calls that change files and stops the process, or fails the call, at a chosen one.
//
// Preloaded into the crash tests (crash.py), it reaches what Python cannot: each write and fsync inside SQLite.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
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

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL_IF_CHOSEN(condition) \
  if ((condition) && Chosen()) {  \
    return Fail();                \
  }

// A torn write leaves the first half of the bytes and then the process dies.
#define WRITE(name, parameters, half, whole)  \
  ssize_t name parameters {                   \
    if (IsFile(fd) && Chosen()) {             \
      if (action == kTear) (void)!(half);     \
      return Fail();                          \
    }                                         \
    return whole;                             \
  }

WRITE(write, (int fd, const void* data, size_t size), REAL(write)(fd, data, size / 2),
      REAL(write)(fd, data, size))
WRITE(pwrite, (int fd, const void* data, size_t size, off_t at), REAL(pwrite)(fd, data, size / 2, at),
      REAL(pwrite)(fd, data, size, at))
WRITE(pwrite64, (int fd, const void* data, size_t size, off64_t at), REAL(pwrite64)(fd, data, size / 2, at),
      REAL(pwrite64)(fd, data, size, at))

#define CHANGE(name, condition, parameters, arguments) \
  int name parameters {                                \
    FAIL_IF_CHOSEN(condition)                          \
    return REAL(name) arguments;                       \
  }

CHANGE(ftruncate, IsFile(fd), (int fd, off_t size), (fd, size))
CHANGE(ftruncate64, IsFile(fd), (int fd, off64_t size), (fd, size))
CHANGE(fsync, IsFile(fd), (int fd), (fd))
CHANGE(fdatasync, IsFile(fd), (int fd), (fd))
CHANGE(rename, 1, (const char* from, const char* to), (from, to))
CHANGE(unlink, 1, (const char* path), (path))
CHANGE(mkdir, 1, (const char* path, mode_t mode), (path, mode))

#define OPEN(name)                                    \
  int name(const char* path, int flags, ...) {        \
    va_list list;                                     \
    va_start(list, flags);                            \
    mode_t mode = va_arg(list, mode_t);               \
    va_end(list);                                     \
    FAIL_IF_CHOSEN(flags & O_CREAT)                   \
    return REAL(name)(path, flags, mode);             \
  }

OPEN(open)
OPEN(open64)
