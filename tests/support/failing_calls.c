// Makes calls of the C library fail that change files below a folder, as a full, broken or read-only disk does.
// To be preloaded; Python, torch and Rust's standard library all write through these functions.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { READS = 1, GROWS = 2, CHANGES = 4, CLOSES = 8 };

static char folder[4096];
static int chosen_kinds, countdown, error_number, for_ever;
static const char* failed = "";

// The countdown-th call of the chosen kinds (a sum of the numbers above) fails, and all later ones too if for_ever;
// or it kills the process, for the error number 0.
void fail_calls(const char* below, int kinds, int number, int error, int ever) {
  strncpy(folder, below, sizeof folder - 1);
  chosen_kinds = kinds, countdown = number, error_number = error, for_ever = ever;
  failed = "";
}

// The name of the first function that failed, or "".
const char* failed_call(void) {
  return failed;
}

static int is_below(int directory, const char* path) {
  char link[64], place[4096] = "";
  if (folder[0] == 0) return 0;
  if (path && path[0] == '/') return strncmp(path, folder, strlen(folder)) == 0;
  if (directory < 0) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
  ssize_t length = readlink(link, place, sizeof place - 1);
  return length > 0 && strncmp(place, folder, strlen(folder)) == 0;
}

static int must_fail(const char* name, int kind, int directory, const char* path) {
  if (!(chosen_kinds & kind) || !is_below(directory, path)) return 0;
  if (countdown > 1) {
    countdown--;
    return 0;
  }
  if (countdown == 1)
    failed = name;
  else if (!(for_ever && failed[0]))
    return 0;
  countdown = 0;
  if (error_number == 0) kill(getpid(), SIGKILL);
  errno = error_number;
  return 1;
}

#define REAL(name) ((__typeof__(name)*)dlsym(RTLD_NEXT, #name))
#define FUNCTION(result, name, parameters, arguments, kind, directory, path) \
  result name parameters {                                                   \
    if (must_fail(#name, kind, directory, path)) return -1;                  \
    return REAL(name) arguments;                                             \
  }

FUNCTION(int, mkdir, (const char* path, mode_t mode), (path, mode), GROWS | CHANGES, -1, path)
FUNCTION(int, rename, (const char* from, const char* to), (from, to), CHANGES, -1, from)
FUNCTION(
    int,
    renameat,
    (int from_fd, const char* from, int to_fd, const char* to),
    (from_fd, from, to_fd, to),
    CHANGES,
    from_fd,
    from)
FUNCTION(int, rmdir, (const char* path), (path), CHANGES, -1, path)
FUNCTION(int, unlink, (const char* path), (path), CHANGES, -1, path)
FUNCTION(int, unlinkat, (int fd, const char* path, int flags), (fd, path, flags), CHANGES, fd, path)
FUNCTION(int, ftruncate, (int fd, off_t size), (fd, size), CHANGES, fd, NULL)
FUNCTION(int, ftruncate64, (int fd, off64_t size), (fd, size), CHANGES, fd, NULL)
FUNCTION(int, fsync, (int fd), (fd), GROWS | CHANGES, fd, NULL)
FUNCTION(int, fdatasync, (int fd), (fd), GROWS | CHANGES, fd, NULL)
FUNCTION(ssize_t, read, (int fd, void* data, size_t size), (fd, data, size), READS, fd, NULL)
FUNCTION(ssize_t, write, (int fd, const void* data, size_t size), (fd, data, size), GROWS | CHANGES, fd, NULL)
FUNCTION(ssize_t, writev, (int fd, const struct iovec* parts, int count), (fd, parts, count), GROWS | CHANGES, fd, NULL)
FUNCTION(
    ssize_t,
    pwrite64,
    (int fd, const void* data, size_t size, off64_t at),
    (fd, data, size, at),
    GROWS | CHANGES,
    fd,
    NULL)

int close(int fd) {
  // What was only read can always be closed.
  int written = (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY;
  int fails = written && must_fail("close", CLOSES, fd, NULL);
  int result = REAL(close)(fd);  // the descriptor is gone in either case
  if (!fails) return result;
  errno = error_number;
  return -1;
}

static int opening_kind(int flags) {
  return (flags & O_ACCMODE) == O_RDONLY ? READS : flags & O_CREAT ? GROWS | CHANGES : CHANGES;
}

#define MODE(last)               \
  mode_t mode = 0;               \
  if (flags & O_CREAT) {         \
    va_list list;                \
    va_start(list, last);        \
    mode = va_arg(list, mode_t); \
    va_end(list);                \
  }

#define OPEN(name)                                                  \
  int name(const char* path, int flags, ...) {                      \
    MODE(flags)                                                     \
    if (must_fail(#name, opening_kind(flags), -1, path)) return -1; \
    return REAL(name)(path, flags, mode);                           \
  }
#define OPENAT(name)                                                \
  int name(int fd, const char* path, int flags, ...) {              \
    MODE(flags)                                                     \
    if (must_fail(#name, opening_kind(flags), fd, path)) return -1; \
    return REAL(name)(fd, path, flags, mode);                       \
  }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
