/* Threads that wait for work: made when first needed, kept, and made anew in a process that was forked.
 *
 * Who asks works too. Chunks are taken in turn, so that a thread that comes late, or loses its core, holds nothing up; one
 * that finds no work looks again for some microseconds, then sleeps. While one asks, others that ask work alone.
 */
#define _GNU_SOURCE /* with -std=c11 the system says less */
#include "kernels.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#if !defined(_WIN32)
#include <signal.h>
#endif

enum { MOST_WORKERS = 255, LOOKS = 1000, MOST_CHUNKS = 1 << 20 };

/* What is to be taken next, of how many, by workers below which number: one word, so that a taker sees all three at once. */
#define TICKET(next, chunks, workers) ((uint64_t)(next) << 40 | (uint64_t)(chunks) << 16 | (uint64_t)(workers))
#define NEXT(ticket) ((int64_t)((ticket) >> 40))
#define CHUNKS(ticket) ((int64_t)((ticket) >> 16 & 0xffffff))
#define WORKERS(ticket) ((int64_t)((ticket) & 0xffff))

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static atomic_int busy, sleeping;
static int workers; /* changed by who is busy */
static _Atomic uint64_t ticket;
static atomic_llong done;
/* Written before the ticket, and read by who took a chunk of it: that chunk keeps them as they are. */
static work_chunk *job;
static void *job_context;

static void look_again(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* Chunks of whatever job there is, until none is left for this number of worker. */
static void work_on(int64_t worker)
{
    uint64_t seen = atomic_load(&ticket);
    while (worker < WORKERS(seen) && NEXT(seen) < CHUNKS(seen)) {
        if (!atomic_compare_exchange_weak(&ticket, &seen, seen + TICKET(1, 0, 0)))
            continue;
        job(job_context, NEXT(seen));
        atomic_fetch_add(&done, 1);
        seen = atomic_load(&ticket);
    }
}

static int has_work(int64_t worker)
{
    const uint64_t seen = atomic_load(&ticket);
    return worker < WORKERS(seen) && NEXT(seen) < CHUNKS(seen);
}

static void *worker_of(void *number)
{
    const int64_t worker = (int64_t)(intptr_t)number;
    for (;;) {
        for (int looks = 0; looks < LOOKS; looks++) {
            if (has_work(worker)) {
                work_on(worker);
                looks = 0;
            }
            look_again();
        }
        pthread_mutex_lock(&lock);
        atomic_fetch_add(&sleeping, 1); /* before the look: who sets the ticket then sees a sleeper, or is seen */
        while (!has_work(worker))
            pthread_cond_wait(&wake, &lock);
        atomic_fetch_sub(&sleeping, 1);
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}

#if !defined(_WIN32)
/* The threads of the parent are not here. */
static void in_child(void)
{
    pthread_mutex_init(&lock, NULL);
    pthread_cond_init(&wake, NULL);
    workers = 0;
    atomic_store(&busy, 0);
    atomic_store(&sleeping, 0);
    atomic_store(&ticket, 0);
}
#endif

/* So many workers, or as many as the system gives. */
static void want(int count)
{
    if (workers >= count)
        return;
#if !defined(_WIN32)
    static int told;
    if (!told)
        told = !pthread_atfork(NULL, NULL, in_child);
    if (!told)
        return;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals go to the threads of the caller */
#endif
    while (workers < count) {
        pthread_t thread;
        /* The ticket of an ended job has no chunk left: a new worker waits. */
        if (pthread_create(&thread, NULL, worker_of, (void *)(intptr_t)(workers + 1)))
            break;
        pthread_detach(thread);
        workers++;
    }
#if !defined(_WIN32)
    pthread_sigmask(SIG_SETMASK, &before, NULL);
#endif
}

void isoloss_share(work_chunk *work, void *context, int64_t chunks, int32_t threads)
{
    int idle = 0;
    const int64_t most = threads < chunks ? threads : chunks;
    const int others = most - 1 < MOST_WORKERS ? (int)most - 1 : MOST_WORKERS;
    if (others < 1 || chunks >= MOST_CHUNKS || !atomic_compare_exchange_strong(&busy, &idle, 1)) {
        for (int64_t chunk = 0; chunk < chunks; chunk++)
            work(context, chunk);
        return;
    }
    want(others);
    job = work;
    job_context = context;
    atomic_store(&done, 0);
    atomic_store(&ticket, TICKET(0, chunks, others + 1));
    if (atomic_load(&sleeping)) {
        pthread_mutex_lock(&lock);
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&lock);
    }
    work_on(0);
    for (int looks = 0; atomic_load(&done) < chunks; looks++)
        if (looks < LOOKS)
            look_again();
        else
            sched_yield(); /* who has the last chunk may wait for this core */
    atomic_store(&busy, 0);
}
