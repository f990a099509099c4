/* A plain C client, for comparison with the bench's own: round trips and short connections with the bench's server.
 *
 *   client rr|crr HOST PORT CONNECTIONS BYTES SECONDS HELLO     prints operations per second
 *
 * Written as one would write it: one connection blocks, several share a level-triggered epoll. HELLO, in hexadecimal,
 * is what each connection begins with; with crr it is the request. It sends zeros and looks at no answer. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BYTES_MAX 16384
#define CONNECTIONS_MAX 1024

#define HELLO_BYTES 64

static struct sockaddr_in server;
static char hello[HELLO_BYTES];
static int reconnect;
static char request[BYTES_MAX], answer[BYTES_MAX];
static size_t size;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void must(int ok, const char *what) {
    if (!ok) {
        perror(what);
        exit(1);
    }
}

static int open_connection(void) {
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    must(fd >= 0, "socket");
    must(connect(fd, (struct sockaddr *)&server, sizeof server) == 0, "connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (!reconnect) { /* the server greets with eight bytes */
        must(write(fd, hello, HELLO_BYTES) == HELLO_BYTES && read(fd, answer, 8) == 8, "hello");
    }
    return fd;
}

static void read_answer(int fd) {
    for (size_t got = 0; got < size;) {
        ssize_t n = read(fd, answer + got, size - got);
        must(n > 0, "read");
        got += (size_t)n;
    }
}

static void write_request(int fd) {
    must(write(fd, reconnect ? hello : request, size) == (ssize_t)size, "write");
}

int main(int argc, char **argv) {
    must(argc == 8 && strlen(argv[7]) == 2 * HELLO_BYTES, "usage: client rr|crr HOST PORT CONNECTIONS BYTES SECONDS HELLO");
    reconnect = strcmp(argv[1], "crr") == 0;
    int connections = atoi(argv[4]);
    for (int i = 0; i < HELLO_BYTES; i++)
        must(sscanf(argv[7] + 2 * i, "%2hhx", (unsigned char *)hello + i) == 1, "hello");
    server.sin_family = AF_INET;
    server.sin_port = htons((unsigned short)atoi(argv[3]));
    must(inet_pton(AF_INET, argv[2], &server.sin_addr) == 1, "address");
    size = (size_t)atoi(argv[5]);
    must(size <= BYTES_MAX && connections <= CONNECTIONS_MAX, "limits");
    double seconds = atof(argv[6]), begin = now();
    long operations = 0;
    if (connections == 1) {
        int fd = reconnect ? -1 : open_connection();
        while (now() - begin < seconds) {
            if (reconnect)
                fd = open_connection();
            write_request(fd);
            read_answer(fd);
            if (reconnect)
                close(fd);
            operations++;
        }
    } else {
        struct epoll_event events[256], event = {.events = EPOLLIN};
        int epfd = epoll_create1(0);
        for (int i = 0; i < connections; i++) {
            event.data.fd = open_connection();
            must(epoll_ctl(epfd, EPOLL_CTL_ADD, event.data.fd, &event) == 0, "epoll_ctl");
            write_request(event.data.fd);
        }
        while (now() - begin < seconds) {
            int ready = epoll_wait(epfd, events, 256, 1000);
            for (int i = 0; i < ready; i++) {
                int fd = events[i].data.fd;
                read_answer(fd);
                operations++;
                if (reconnect) {
                    close(fd);
                    event.data.fd = fd = open_connection();
                    must(epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &event) == 0, "epoll_ctl");
                }
                write_request(fd);
            }
        }
    }
    printf("%.1f\n", operations / (now() - begin));
    return 0;
}
