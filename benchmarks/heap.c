/* Counts the bytes that a process holds through malloc and its relatives, and their peak. Preloaded
   by memory.py; exact where resident memory is blurred by pages, caches and code. */
#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stddef.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static atomic_llong held, peak;

static void *count(void *p) {
  if (p == NULL) return p;
  const long long now = atomic_fetch_add(&held, (long long)malloc_usable_size(p)) +
                        (long long)malloc_usable_size(p);
  long long seen = atomic_load(&peak);
  while (now > seen && !atomic_compare_exchange_weak(&peak, &seen, now)) {
  }
  return p;
}

static void discount(void *p) {
  if (p != NULL) atomic_fetch_sub(&held, (long long)malloc_usable_size(p));
}

void *malloc(size_t n) { return count(__libc_malloc(n)); }
void *calloc(size_t n, size_t size) { return count(__libc_calloc(n, size)); }
void *memalign(size_t alignment, size_t n) { return count(__libc_memalign(alignment, n)); }
void *aligned_alloc(size_t alignment, size_t n) { return count(__libc_memalign(alignment, n)); }

int posix_memalign(void **out, size_t alignment, size_t n) {
  void *p = count(__libc_memalign(alignment, n));
  if (p == NULL) return ENOMEM;
  *out = p;
  return 0;
}

void *realloc(void *p, size_t n) {
  const long long before = p == NULL ? 0 : (long long)malloc_usable_size(p);
  void *moved = __libc_realloc(p, n);
  if (moved == NULL && n != 0) return NULL; /* the old block is still held */
  atomic_fetch_sub(&held, before);
  return count(moved);
}

void free(void *p) {
  discount(p);
  __libc_free(p);
}

/* The peak starts again from what is held now, which is returned. */
long long heap_restart(void) {
  const long long now = atomic_load(&held);
  atomic_store(&peak, now);
  return now;
}
long long heap_peak(void) { return atomic_load(&peak); }
