/* Preloaded into the lab's QEMU: notes when it has a device opened and closed, "TIME open FD FLAGS" and "TIME close FD".
 *
 * OPEN_LOG names the file, OPEN_LOG_OF the device. A tracer of all that QEMU does would show the same, and slow an emulated one
 * down for minutes. While the file OPEN_GATE is there, an open for writing waits, and that it does is seen by OPEN_GATE.reached. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define FDS 4096
static char is_ours[FDS];
static int log_fd = -1;
static const char *device, *gate;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("OPEN_LOG");
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open64");
    device = getenv("OPEN_LOG_OF");
    gate = getenv("OPEN_GATE");
    if (path && device)
        log_fd = real(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static void note(const char *what, int fd, int flags)
{
    struct timespec now;
    char line[96];
    int n;
    clock_gettime(CLOCK_REALTIME, &now);
    n = snprintf(line, sizeof line, "%lld.%09ld %s %d %o\n", (long long)now.tv_sec, now.tv_nsec, what, fd, flags);
    if (write(log_fd, line, n) != n)
        abort(); /* a trace with holes proves nothing */
}

static void wait_at_gate(const char *symbol)
{
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, symbol);
    const struct timespec tenth = {0, 100000000};
    char reached[256];
    int fd;
    if (!gate || access(gate, F_OK))
        return;
    snprintf(reached, sizeof reached, "%s.reached", gate);
    fd = real(reached, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd >= 0)
        close(fd);
    while (!access(gate, F_OK))
        nanosleep(&tenth, 0);
}

/* The time before the open: it may write no earlier. */
static int opened(const char *symbol, const char *path, int flags, mode_t mode)
{
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, symbol);
    int fd, noted = log_fd >= 0 && device && !strcmp(path, device);
    if (noted) {
        if ((flags & O_ACCMODE) != O_RDONLY)
            wait_at_gate(symbol);
        note("opens", -1, flags);
    }
    fd = real(path, flags, mode);
    if (noted && fd >= 0 && fd < FDS) {
        is_ours[fd] = 1;
        note("open", fd, flags);
    }
    return fd;
}

#define OPEN(name)                                                   \
    int name(const char *path, int flags, ...)                       \
    {                                                                \
        mode_t mode = 0;                                             \
        if (flags & (O_CREAT | O_TMPFILE)) {                         \
            va_list more;                                            \
            va_start(more, flags);                                   \
            mode = va_arg(more, mode_t);                             \
            va_end(more);                                            \
        }                                                            \
        return opened(#name, path, flags, mode);                     \
    }
OPEN(open)
OPEN(open64)

int close(int fd)
{
    int (*real)(int) = dlsym(RTLD_NEXT, "close");
    int was_ours = fd >= 0 && fd < FDS && is_ours[fd], result;
    if (was_ours)
        is_ours[fd] = 0;
    result = real(fd);
    if (was_ours)
        note("close", fd, 0); /* the time after it: it may write no later */
    return result;
}
