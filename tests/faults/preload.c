/* Preloaded before a process: writes a journal of what it does to the files below FAULT_ROOT (FAULT_JOURNAL),
   kills it at the n-th call of a kind (FAULT_KILL=fsync:7), or makes calls fail while a file with the number of an
   error exists (FAULT_ERROR). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define HANDLES 4096
static char *names[HANDLES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int journal = -1, count;
static pid_t ready;     /* the process that has read its settings: one that it forks has its own */
static const char *root, *kind_to_kill, *error_file;
static int kill_at;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void start(void)
{
    if (ready == getpid())
        return;
    ready = getpid();
    root = getenv("FAULT_ROOT");
    error_file = getenv("FAULT_ERROR");
    const char *kill = getenv("FAULT_KILL"), *path = getenv("FAULT_JOURNAL");
    if (kill) {
        char *copy = strdup(kill), *colon = strchr(copy, ':');
        *colon = 0;
        kind_to_kill = copy;
        kill_at = atoi(colon + 1);
    }
    if (path)
        journal = REAL(open)(path, O_CREAT | O_APPEND | O_WRONLY, 0600);
}

static int ours(const char *path)
{
    start();
    return root && path && !strncmp(path, root, strlen(root)) && !strstr(path, ".acknowledged")
        && !strstr(path, "-shm");
}

static char *absolute(int directory, const char *path, char *buffer, size_t size)
{
    if (path[0] != '/' && directory >= 0 && directory < HANDLES && names[directory])
        snprintf(buffer, size, "%s/%s", names[directory], path);
    else if (path[0] != '/') {
        char here[2048];
        snprintf(buffer, size, "%s/%s", getcwd(here, sizeof here) ? here : "", path);
    } else
        snprintf(buffer, size, "%s", path);
    return buffer;
}

/* One record: kind, path, second path or "-", offset, length, and that many bytes. */
static void record(const char *kind, const char *path, const char *other, long long offset, const void *data,
                   size_t length)
{
    char head[9000];
    if (journal < 0)
        return;
    int size = snprintf(head, sizeof head, "%s\t%s\t%s\t%lld\t%zu\n", kind, path, other, offset, length);
    pthread_mutex_lock(&lock);
    REAL(write)(journal, head, size);
    if (length)
        REAL(write)(journal, data, length);
    pthread_mutex_unlock(&lock);
}

static void may_die(const char *kind)
{
    if (kind_to_kill && !strcmp(kind, kind_to_kill) && __sync_add_and_fetch(&count, 1) == kill_at)
        kill(getpid(), SIGKILL);
}

static int fails(void)
{
    char text[16] = "";
    if (!error_file)
        return 0;
    int handle = REAL(open)(error_file, O_RDONLY);
    if (handle < 0)
        return 0;
    if (read(handle, text, sizeof text - 1) < 0)
        text[0] = 0;
    REAL(close)(handle);
    errno = atoi(text);
    return errno != 0;
}

static int opened(int handle, const char *path, int flags, int existed)
{
    if (handle < 0 || handle >= HANDLES)
        return handle;
    free(names[handle]);
    names[handle] = 0;
    if (!ours(path) || (flags & O_TMPFILE) == O_TMPFILE)
        return handle;
    names[handle] = strdup(path);
    if ((flags & O_CREAT) && !existed)
        record("create", path, "-", 0, 0, 0);
    if ((flags & O_TRUNC) && existed)
        record("truncate", path, "-", 0, 0, 0);
    return handle;
}

static int open_it(int directory, const char *path, int flags, int mode)
{
    char buffer[4200];
    struct stat found;
    absolute(directory, path, buffer, sizeof buffer);
    int existed = !stat(buffer, &found);
    if (ours(buffer) && (flags & (O_CREAT | O_WRONLY | O_RDWR)) && !existed && fails())
        return -1;
    return opened(REAL(openat)(directory, path, flags, mode), buffer, flags, existed);
}

#define MODE(flags) int mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, int); va_end(rest); }

int open(const char *path, int flags, ...) { MODE(flags) return open_it(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return open_it(AT_FDCWD, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(flags) start();
    char buffer[4200]; struct stat found; absolute(at, path, buffer, sizeof buffer); int existed = !stat(buffer, &found);
    static int (*real)(int, const char *, int, ...); if (!real) real = dlsym(RTLD_NEXT, "openat");
    return opened(real(at, path, flags, mode), buffer, flags, existed); }

int close(int handle)
{
    start();
    if (handle == journal)
        return 0;
    if (handle >= 0 && handle < HANDLES) {
        free(names[handle]);
        names[handle] = 0;
    }
    return REAL(close)(handle);
}

static const char *name_of(int handle) { start(); return handle >= 0 && handle < HANDLES ? names[handle] : 0; }

ssize_t write(int handle, const void *data, size_t length)
{
    const char *name = name_of(handle);
    if (!name)
        return REAL(write)(handle, data, length);
    if (fails())
        return -1;
    may_die("pwrite");
    off_t before = lseek(handle, 0, fcntl(handle, F_GETFL) & O_APPEND ? SEEK_END : SEEK_CUR);
    ssize_t done = REAL(write)(handle, data, length);
    if (done > 0)
        record("write", name, "-", before, data, done);
    return done;
}

static ssize_t pwrite_it(int handle, const void *data, size_t length, off_t offset)
{
    const char *name = name_of(handle);
    if (name && fails())
        return -1;
    if (name)
        may_die("pwrite");
    ssize_t done = REAL(pwrite)(handle, data, length, offset);
    if (name && done > 0)
        record("write", name, "-", offset, data, done);
    return done;
}
ssize_t pwrite(int handle, const void *data, size_t length, off_t offset) { return pwrite_it(handle, data, length, offset); }
ssize_t pwrite64(int handle, const void *data, size_t length, off64_t offset) { return pwrite_it(handle, data, length, offset); }

static int truncate_it(int handle, off_t length)
{
    const char *name = name_of(handle);
    int done = REAL(ftruncate)(handle, length);
    if (name && !done)
        record("truncate", name, "-", length, 0, 0);
    return done;
}
int ftruncate(int handle, off_t length) { return truncate_it(handle, length); }
int ftruncate64(int handle, off64_t length) { return truncate_it(handle, length); }

static int sync_it(int handle, int data)
{
    const char *name = name_of(handle);
    if (name && fails())
        return -1;
    if (name)
        may_die("fsync");
    int done = data ? REAL(fdatasync)(handle) : REAL(fsync)(handle);
    if (name && !done)
        record("fsync", name, "-", 0, 0, 0);
    return done;
}
int fsync(int handle) { return sync_it(handle, 0); }
int fdatasync(int handle) { return sync_it(handle, 1); }

static int rename_it(int from, const char *old, int to, const char *new)
{
    char first[4200], second[4200];
    absolute(from, old, first, sizeof first);
    absolute(to, new, second, sizeof second);
    if (ours(second) && fails())
        return -1;
    if (ours(second))
        may_die("rename");
    int done = REAL(renameat)(from, old, to, new);
    if (!done && ours(second))
        record("rename", first, second, 0, 0, 0);
    return done;
}
int rename(const char *old, const char *new) { return rename_it(AT_FDCWD, old, AT_FDCWD, new); }
int renameat(int from, const char *old, int to, const char *new) { 
    start(); static int (*real)(int, const char *, int, const char *); if (!real) real = dlsym(RTLD_NEXT, "renameat");
    char first[4200], second[4200]; absolute(from, old, first, sizeof first); absolute(to, new, second, sizeof second);
    int done = real(from, old, to, new); if (!done && ours(second)) record("rename", first, second, 0, 0, 0); return done; }

static int unlink_it(int at, const char *path, int flags)
{
    char buffer[4200];
    absolute(at, path, buffer, sizeof buffer);
    if (ours(buffer))
        may_die("unlink");
    static int (*real)(int, const char *, int);
    if (!real)
        real = dlsym(RTLD_NEXT, "unlinkat");
    int done = real(at, path, flags);
    if (!done && ours(buffer))
        record("unlink", buffer, "-", 0, 0, 0);
    return done;
}
int unlink(const char *path) { return unlink_it(AT_FDCWD, path, 0); }
int unlinkat(int at, const char *path, int flags) { return unlink_it(at, path, flags); }
int rmdir(const char *path) { return unlink_it(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdir(const char *path, mode_t mode)
{
    char buffer[4200];
    absolute(AT_FDCWD, path, buffer, sizeof buffer);
    if (ours(buffer) && fails())
        return -1;
    int done = REAL(mkdir)(path, mode);
    if (!done && ours(buffer))
        record("mkdir", buffer, "-", 0, 0, 0);
    return done;
}

static void answered(const void *data, size_t length)
{
    start();
    if (length > 12 && !memcmp(data, "HTTP/1.1 ", 9))
        record("answer", "-", "-", 0, data, length < 300 ? length : 300);
}
ssize_t send(int handle, const void *data, size_t length, int flags) { answered(data, length); return REAL(send)(handle, data, length, flags); }
