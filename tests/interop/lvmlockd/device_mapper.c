/* A device-mapper for one process on a kernel that has none: preloaded, it answers on /dev/mapper/control for what
 * lvmlockd asks when it adopts locks, as linux/dm-ioctl.h says: its version, the list of devices, the status of one.
 * Devices are the files of the directory DEVICE_MAPPER: the file's name is the device's, its content the device's uuid. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <linux/dm-ioctl.h>

enum { MAJOR = 252, NAME_BYTES = 128 };
static int control = -1;

static int opened(const char *path, int flags, mode_t mode, const char *function)
{
	int (*next)(const char *, int, ...) = dlsym(RTLD_NEXT, function);
	if (strcmp(path, "/dev/mapper/control"))
		return next(path, flags, mode);
	return control = next("/dev/null", O_RDWR | O_CLOEXEC, 0);
}

int open(const char *path, int flags, ...)
{
	va_list more;
	va_start(more, flags);
	mode_t mode = va_arg(more, int);
	va_end(more);
	return opened(path, flags, mode, "open");
}

int open64(const char *path, int flags, ...)
{
	va_list more;
	va_start(more, flags);
	mode_t mode = va_arg(more, int);
	va_end(more);
	return opened(path, flags, mode, "open64");
}

static int uuid_of(const char *name, char *uuid)
{
	char path[4096];
	snprintf(path, sizeof path, "%s/%s", getenv("DEVICE_MAPPER"), name);
	FILE *file = fopen(path, "r");
	if (!file)
		return errno = ENXIO, -1;
	size_t length = fread(uuid, 1, DM_UUID_LEN - 1, file);
	uuid[length] = 0;
	fclose(file);
	return 0;
}

static int list(struct dm_ioctl *io)
{
	char *at = (char *)io + io->data_start;
	struct dm_name_list *before = NULL;
	struct dirent *entry;
	DIR *devices = opendir(getenv("DEVICE_MAPPER"));
	if (!devices)
		abort();
	for (unsigned minor = 0; (entry = readdir(devices));) {
		if (entry->d_name[0] == '.')
			continue;
		struct dm_name_list *one = (struct dm_name_list *)at;
		if (at + sizeof *one + NAME_BYTES + DM_UUID_LEN > (char *)io + io->data_size)
			abort();
		if (before)
			before->next = at - (char *)before;
		memset(one, 0, sizeof *one + NAME_BYTES);
		one->dev = MAJOR << 8 | minor++;
		strncpy(one->name, entry->d_name, NAME_BYTES - 1);
		before = one;
		at += (sizeof *one + NAME_BYTES + 7) & ~7;
	}
	closedir(devices);
	if (!before)
		memset(at, 0, sizeof *before);
	return 0;
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list more;
	va_start(more, request);
	struct dm_ioctl *io = va_arg(more, struct dm_ioctl *);
	va_end(more);
	if (fd != control || control < 0)
		return ((int (*)(int, unsigned long, void *))dlsym(RTLD_NEXT, "ioctl"))(fd, request, io);
	io->version[0] = DM_VERSION_MAJOR;
	io->version[1] = 37; /* before uuids came into the list */
	switch ((unsigned)request) {
	case DM_VERSION:
		return 0;
	case DM_LIST_DEVICES:
		return list(io);
	case DM_DEV_STATUS:
		io->dev = MAJOR << 8;
		return uuid_of(io->name, io->uuid);
	}
	fprintf(stderr, "device_mapper.c does not serve ioctl %lx\n", request);
	errno = ENOTTY;
	return -1;
}
