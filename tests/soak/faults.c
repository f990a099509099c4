/* System calls and allocations of the native extension that fail at random, by a seed.
 *
 * Preloaded (LD_PRELOAD), it stands before the C library. Only calls from the address range that `faults_arm` names
 * fail, so that the interpreter, the test and its peers have a sound machine. Which call of the sequence fails is a
 * function of the seed alone. With -DRENAMED some names are faulty_malloc, ..., for an extension that was built to call
 * those (under the address sanitizer, which stands before the C library itself).
 *
 * With FAULTS_CONTROL, the name of a file of numbers, another process says the rate, and `faults_arm` is not needed: see
 * tests/faults/control.py.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#ifdef RENAMED
#define NAME(name) faulty_##name
#else
#define NAME(name) name
void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
#endif

enum {
    MALLOC, CALLOC, REALLOC, SOCKET, ACCEPT4, EPOLL_CTL, SPLICE, PIPE2, CONNECT, BIND, FCNTL, RECV, SEND, RECVMMSG,
    SENDMMSG, SETSOCKOPT, EVENTFD, EPOLL_CREATE1, PTHREAD_CREATE, KINDS
};

static _Atomic uintptr_t low, high;
static _Atomic uint64_t calls[KINDS], failed[KINDS], per_million;
static uint64_t seed, kinds;

/* What FAULTS_CONTROL has: the rate, the time by which the clock is off, how many calls have failed, the seed. */
enum { SHARED_RATE, SHARED_CLOCK, SHARED_FAILED, SHARED_SEED, SHARED_NUMBERS };
static _Atomic uint64_t *shared;

__attribute__((constructor)) static void map_shared(void)
{
    const char *name = getenv("FAULTS_CONTROL");
    int fd = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *place = mmap(NULL, SHARED_NUMBERS * sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (place == MAP_FAILED)
        return;
    shared = place;
    seed = atomic_load(&shared[SHARED_SEED]);
    kinds = ~(uint64_t) 0;
}

/* Whether the call comes from the extension. */
static int ours(void *from)
{
    Dl_info found;
    if (!shared)
        return (uintptr_t) from >= atomic_load(&low) && (uintptr_t) from < atomic_load(&high);
    return dladdr(from, &found) && found.dli_fname && strstr(found.dli_fname, "/_fastpath.");
}

/* Let calls of the kinds in `mask` from [begin, end) fail, `rate` of a million; a rate of 0 ends it. The main thread is
 * left alone: it is the interpreter's, where a failed allocation is an exception and ends what was asked for. */
void faults_arm(uintptr_t begin, uintptr_t end, uint64_t from, uint64_t rate, uint64_t mask)
{
    atomic_store(&per_million, 0);
    seed = from;
    kinds = mask;
    atomic_store(&low, begin);
    atomic_store(&high, end);
    atomic_store(&per_million, rate);
}

uint64_t faults_failed(int kind) { return kind >= 0 && kind < KINDS ? atomic_load(&failed[kind]) : 0; }

static int fails(int kind, void *from)
{
    uint64_t rate = shared ? atomic_load(&shared[SHARED_RATE]) : atomic_load_explicit(&per_million, memory_order_acquire), x;
    if (!rate || !(kinds >> kind & 1) || gettid() == getpid())
        return 0;
    if (!ours(from))
        return 0;
    x = seed ^ ((uint64_t) (kind + 1) << 56) ^ atomic_fetch_add(&calls[kind], 1);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;      /* splitmix64 */
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    x ^= x >> 31;
    if (kind <= REALLOC)        /* reactors keep what they have, so that these calls are rare */
        rate *= 25;
    if (kind == PIPE2 || kind == SPLICE)
        rate *= 5;
    if (x % 1000000 >= rate)
        return 0;
    atomic_fetch_add(&failed[kind], 1);
    if (shared)
        atomic_fetch_add(&shared[SHARED_FAILED], 1);
    return 1 + (int) (x >> 32 & 0xff);
}

#define FROM __builtin_extract_return_addr(__builtin_return_address(0))

/* One of the errors that the call is documented to have, when it fails. */
#define FAIL(kind, result, ...)                                                         \
    do {                                                                                \
        static const int errors[] = {__VA_ARGS__};                                      \
        int nth = fails(kind, FROM);                                                    \
        if (nth) {                                                                      \
            errno = errors[nth % (sizeof errors / sizeof *errors)];                     \
            return result;                                                              \
        }                                                                               \
    } while (0)

#define REAL(name, ...)                                                                 \
    ({                                                                                  \
        static _Atomic(__typeof__(&name)) real;                                         \
        if (!atomic_load(&real))                                                        \
            atomic_store(&real, (__typeof__(&name)) dlsym(RTLD_NEXT, #name));           \
        atomic_load(&real)(__VA_ARGS__);                                                \
    })

#ifdef RENAMED
#define MALLOC_OF(name, ...) name(__VA_ARGS__)
#define CALL(name, ...) name(__VA_ARGS__)
#else
#define MALLOC_OF(name, ...) __libc_##name(__VA_ARGS__)
#define CALL(name, ...) REAL(name, __VA_ARGS__)
#endif

void *NAME(malloc)(size_t size)
{
    FAIL(MALLOC, NULL, ENOMEM);
    return MALLOC_OF(malloc, size);
}

void *NAME(calloc)(size_t count, size_t size)
{
    FAIL(CALLOC, NULL, ENOMEM);
    return MALLOC_OF(calloc, count, size);
}

void *NAME(realloc)(void *old, size_t size)
{
    FAIL(REALLOC, NULL, ENOMEM);
    return MALLOC_OF(realloc, old, size);
}

int NAME(accept4)(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    FAIL(ACCEPT4, -1, EMFILE, ENFILE, ENOMEM, ENOBUFS, ECONNABORTED);
    return CALL(accept4, fd, address, length, flags);
}

int NAME(epoll_ctl)(int epoll, int operation, int fd, struct epoll_event *event)
{
    if (operation == EPOLL_CTL_ADD)
        FAIL(EPOLL_CTL, -1, ENOMEM, ENOSPC);
    return CALL(epoll_ctl, epoll, operation, fd, event);
}

ssize_t NAME(splice)(int in, off64_t *in_at, int out, off64_t *out_at, size_t length, unsigned flags)
{
    FAIL(SPLICE, -1, ENOMEM);
    return CALL(splice, in, in_at, out, out_at, length, flags);
}

int NAME(pipe2)(int ends[2], int flags)
{
    FAIL(PIPE2, -1, EMFILE, ENFILE);
    return CALL(pipe2, ends, flags);
}

int socket(int family, int type, int protocol)
{
    FAIL(SOCKET, -1, EMFILE, ENFILE, ENOMEM, ENOBUFS);
    return REAL(socket, family, type, protocol);
}

int connect(int fd, const struct sockaddr *address, socklen_t length)
{
    FAIL(CONNECT, -1, ENETUNREACH, EADDRNOTAVAIL, ENOBUFS);
    return REAL(connect, fd, address, length);
}

int bind(int fd, const struct sockaddr *address, socklen_t length)
{
    FAIL(BIND, -1, EADDRINUSE, ENOBUFS);
    return REAL(bind, fd, address, length);
}

int fcntl64(int fd, int command, ...)
{
    va_list words;
    va_start(words, command);
    void *word = va_arg(words, void *);
    va_end(words);
    if (command == F_SETPIPE_SZ)
        FAIL(FCNTL, -1, EPERM, ENOMEM);
    return REAL(fcntl64, fd, command, word);
}

ssize_t recv(int fd, void *data, size_t size, int flags)
{
    FAIL(RECV, -1, ENOMEM, ECONNRESET, ETIMEDOUT);
    return REAL(recv, fd, data, size, flags);
}

ssize_t send(int fd, const void *data, size_t size, int flags)
{
    FAIL(SEND, -1, ENOMEM, ENOBUFS, EPIPE);
    return REAL(send, fd, data, size, flags);
}

int recvmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags, struct timespec *timeout)
{
    FAIL(RECVMMSG, -1, ENOMEM);
    return REAL(recvmmsg, fd, messages, count, flags, timeout);
}

int sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
    FAIL(SENDMMSG, -1, ENOBUFS, ENOMEM, EPERM);
    return REAL(sendmmsg, fd, messages, count, flags);
}

int setsockopt(int fd, int level, int name, const void *value, socklen_t length)
{
    if (name != SO_LINGER)      /* which cannot fail, and without which a reset would be a FIN */
        FAIL(SETSOCKOPT, -1, ENOMEM, ENOBUFS);
    return REAL(setsockopt, fd, level, name, value, length);
}

int eventfd(unsigned start, int flags)
{
    extern int eventfd(unsigned, int);
    FAIL(EVENTFD, -1, EMFILE, ENOMEM);
    return REAL(eventfd, start, flags);
}

int epoll_create1(int flags)
{
    FAIL(EPOLL_CREATE1, -1, EMFILE, ENOMEM);
    return REAL(epoll_create1, flags);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *word)
{
    if (fails(PTHREAD_CREATE, FROM))
        return EAGAIN;
    return REAL(pthread_create, thread, attributes, run, word);
}
