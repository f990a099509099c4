/* A wall clock that jumps: preloaded (LD_PRELOAD), CLOCK_REALTIME is off by what the file FAULTS_CONTROL says.
 *
 * The kernel's time namespaces have the monotonic clocks only, and a change of the machine's own clock would be everybody's.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* The second number of the file, see `control.py`. */
enum { OFF_BY_S = 1, NUMBERS = 4 };
static _Atomic int64_t *control;

__attribute__((constructor)) static void map_control(void)
{
    const char *name = getenv("FAULTS_CONTROL");
    int fd = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *place = mmap(NULL, NUMBERS * sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (place != MAP_FAILED)
        control = place;
}

static int64_t off_by(void) { return control ? atomic_load(&control[OFF_BY_S]) : 0; }

int clock_gettime(clockid_t clock, struct timespec *now)
{
    static _Atomic(__typeof__(&clock_gettime)) real;
    if (!atomic_load(&real))
        atomic_store(&real, (__typeof__(&clock_gettime)) dlsym(RTLD_NEXT, "clock_gettime"));
    int failed = atomic_load(&real)(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += off_by();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    int failed = (int) syscall(SYS_gettimeofday, now, zone);
    if (!failed)
        now->tv_sec += off_by();
    return failed;
}

time_t time(time_t *place)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (place)
        *place = now.tv_sec;
    return now.tv_sec;
}
