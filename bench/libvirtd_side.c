/* libvirtd's side of VM cycles, in C as libvirtd is: a generator in Python would be a sixth of what is measured.
 *
 *     libvirtd_side SOCKET FRAMES
 *
 * FRAMES is a file: for each VM six frames, each a 32-bit length in host order and its bytes: REGISTER, 2 x ACQUIRE,
 * REGISTER, 2 x RELEASE.  For each line "COUNT FIRST" on standard input so many cycles are done, from that VM on, and a
 * line is printed: the seconds of all, and the median seconds of a start (the acquiring half).
 */
#include <err.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { FRAMES_PER_VM = 6, FRAMES_PER_HALF = 3, REPLY_BYTES = 28 };

struct frame {
    uint32_t length;
    unsigned char *bytes;
};

static struct frame *frames;
static size_t vms;
static struct sockaddr_un address = {.sun_family = AF_UNIX};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void load(const char *path)
{
    FILE *file = fopen(path, "rb");
    size_t count = 0;
    uint32_t length;

    if (file == NULL)
        err(1, "%s", path);
    while (fread(&length, sizeof length, 1, file) == 1) {
        frames = realloc(frames, (count + 1) * sizeof *frames);
        frames[count].length = length;
        frames[count].bytes = malloc(length);
        if (fread(frames[count].bytes, 1, length, file) != length)
            errx(1, "%s is cut short", path);
        count++;
    }
    fclose(file);
    if (count == 0 || count % FRAMES_PER_VM != 0)
        errx(1, "%s holds %zu frames", path, count);
    vms = count / FRAMES_PER_VM;
}

/* One short connection. */
static void speak(const struct frame *half)
{
    unsigned char reply[4096];
    int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (s < 0 || connect(s, (struct sockaddr *)&address, sizeof address) < 0)
        err(1, "%s", address.sun_path);
    for (int i = 0; i < FRAMES_PER_HALF; i++) {
        ssize_t got;

        if (send(s, half[i].bytes, half[i].length, MSG_NOSIGNAL) != (ssize_t)half[i].length)
            err(1, "send");
        got = recv(s, reply, sizeof reply, 0);
        if (got != REPLY_BYTES || reply[REPLY_BYTES - 1] != 0)
            errx(1, "refused: a reply of %zd bytes", got);
    }
    close(s);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    long count, first;

    if (argc != 3 || strlen(argv[1]) >= sizeof address.sun_path)
        errx(2, "usage: libvirtd_side SOCKET FRAMES");
    strcpy(address.sun_path, argv[1]);
    load(argv[2]);
    while (scanf("%ld %ld", &count, &first) == 2) {
        double *starts = malloc(count * sizeof *starts), begin = now();

        for (long i = 0; i < count; i++) {
            const struct frame *vm = frames + (first + i) % vms * FRAMES_PER_VM;
            double before = now();

            speak(vm);
            starts[i] = now() - before;
            speak(vm + FRAMES_PER_HALF);
        }
        begin = now() - begin;
        qsort(starts, count, sizeof *starts, ascending);
        printf("%.9f %.9f\n", begin, starts[count / 2]);
        fflush(stdout);
        free(starts);
    }
    return 0;
}
