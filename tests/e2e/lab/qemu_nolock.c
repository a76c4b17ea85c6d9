/* Preloaded into QEMU only: open-file-description locks look unsupported.
 *
 * QEMU locks its images itself, on bytes from 100 up, before libvirt asks the lock manager.  Those locks do not
 * reach other hosts on block devices, but in the lab's shared folder they would refuse a second user first.
 * With `locking=auto` QEMU takes EINVAL for "this system has no such locks" and goes on without.  So whatever
 * refuses a second user in the lab is the lock manager and nothing else. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>

static int forward(const char *name, int fd, int command, void *argument)
{
    int (*real)(int, int, ...) = (int (*)(int, int, ...))dlsym(RTLD_NEXT, name);
    if (command == F_OFD_GETLK || command == F_OFD_SETLK || command == F_OFD_SETLKW) {
        errno = EINVAL;
        return -1;
    }
    return real(fd, command, argument);
}

#define FORWARD(name) \
    int name(int fd, int command, ...) \
    { \
        va_list arguments; \
        va_start(arguments, command); \
        void *argument = va_arg(arguments, void *); \
        va_end(arguments); \
        return forward(#name, fd, command, argument); \
    }

FORWARD(fcntl)
FORWARD(fcntl64)
