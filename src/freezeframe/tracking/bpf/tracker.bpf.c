// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Marks what is written to one whole disk: one byte a granule of 64 KiB.
 *
 * One loaded object a disk: its flags, counters and links live and die with that disk alone,
 * so that trust in one disk's marks never hangs on another's. Settings are constants set
 * before the load, and the verifier drops what a disk does not need.
 *
 * Licensed apart from the rest, because the kernel gives its helpers to GPL-compatible
 * programs only.
 *
 * No vmlinux.h: the few fields that are read are declared here and relocated at load (CO-RE).
 */
typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#include "tracker.h"

#define BPF_MAP_TYPE_HASH 1
#define BPF_MAP_TYPE_ARRAY 2
#define BPF_MAP_TYPE_PERCPU_ARRAY 6
#define BPF_ANY 0
#define BPF_NOEXIST 1
#define BPF_F_MMAPABLE (1U << 10)

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* -- settings ------------------------------------------------------------------------- */

const volatile __u32 disk_major = 0;
const volatile __u32 disk_minor = 0;
const volatile __u64 granules = 0;
/* Whose passthrough requests these are, for some are known to change nothing. */
const volatile __u32 driver = DRIVER_OTHER;
/* Offsets in the record of the classic tracepoint, from tracefs. */
const volatile __u32 at_dev = 0;
const volatile __u32 at_sector = 0;
const volatile __u32 at_nr_sector = 0;
const volatile __u32 at_rwbs = 0;
/* Classic: a discard may be one of several merged ones, of which the record tells the first. */
const volatile __u32 merges_discards = 0;

/* -- what the kernel has ---------------------------------------------------------------- */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct gendisk {
	int major;
	int first_minor;
};

struct request_queue {
	struct gendisk *disk;
};

struct block_device {
	struct gendisk *bd_disk;
};

struct bvec_iter {
	__u64 bi_sector;
	__u32 bi_size;
} __attribute__((packed));

struct bio {
	struct bio *bi_next;
	struct block_device *bi_bdev;
	__u32 bi_opf;
	struct bvec_iter bi_iter;
};

struct request {
	struct request_queue *q;
	__u32 cmd_flags;
	__u64 __sector;
	struct bio *bio;
};

/* Lies right behind its request. An array since "scsi: core: Remove struct scsi_request"
 * (ce70fd9a551a); a pointer before, which does not match and so does not exist. */
struct scsi_cmnd {
	unsigned char cmnd[32];
};

/* Before "block: remove the ->rq_disk field in struct request" (f3fa33acca9f). */
struct request___before {
	struct gendisk *rq_disk;
};

#pragma clang attribute pop

#define OP_MASK 0xff

enum req_op {
	REQ_OP_READ,
	REQ_OP_WRITE,
	REQ_OP_FLUSH,
	REQ_OP_DISCARD,
	REQ_OP_SECURE_ERASE,
	REQ_OP_WRITE_ZEROES,
	REQ_OP_DRV_IN,
	REQ_OP_DRV_OUT,
};

/* -- what user space sees ----------------------------------------------------------------- */

struct page {
	__u8 marked[PAGE_GRANULES];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct page);
} flags SEC(".maps");

struct state {
	__u8 generation[16];
	/* About how many writes were marked: not atomic, for nothing hangs on it. */
	__u64 events;
	__u64 passthrough;
	__u64 harmless;
	__u64 beyond;
	__u64 unknown;
	__u64 nested;
	__u64 queue_full;
	__u64 unseen;
	/* The operation that was not understood, plus one. */
	__u64 last_unknown;
	/* Written and discarded, in sectors of 512 bytes, as each listener saw it. */
	__u64 sectors[LISTENERS];
};

_Static_assert(sizeof(struct state) == STATE_SIZE, "tracker.h tells another size");
_Static_assert(__builtin_offsetof(struct state, events) == STATE_EVENTS, "events");
_Static_assert(__builtin_offsetof(struct state, nested) == STATE_NESTED, "nested");
_Static_assert(__builtin_offsetof(struct state, last_unknown) == STATE_LAST_UNKNOWN, "last");
_Static_assert(__builtin_offsetof(struct state, sectors) == STATE_SECTORS, "sectors");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct state);
} state SEC(".maps");

/* -- what only the kernel side sees --------------------------------------------------------- */

struct span {
	__u64 sector;
	__u64 sectors;
};

/* Where a bio was going when it was queued: when it completes, drivers have split it, moved
 * it to another disk or counted it down to nothing. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, struct span);
} under_way SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} depth SEC(".maps");

static __always_inline struct state *get_state(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&state, &zero);
}

#define COUNT(s, field) __sync_fetch_and_add(&(s)->field, 1)

static __always_inline void not_understood(struct state *s, __u64 op)
{
	s->last_unknown = op + 1;
	COUNT(s, unknown);
}

/* -- marking ------------------------------------------------------------------------------ */

static __always_inline void mark(__u64 granule)
{
	__u32 index = granule >> PAGE_SHIFT;
	struct page *page = bpf_map_lookup_elem(&flags, &index);

	if (page)
		*(volatile __u8 *)&page->marked[granule & (PAGE_GRANULES - 1)] = 1;
}

struct middle {
	__u64 first;
	__u64 last;
};

/* Eight granules at a time. A plain store, as for one: user space stores zeros at what it
 * has copied, and whoever comes last wins. */
static long mark_word(__u64 turn, struct middle *m)
{
	__u64 granule = ((m->first >> 3) + turn) << 3;
	__u32 index = granule >> PAGE_SHIFT;
	struct page *page;

	if (granule > m->last)
		return 1;
	page = bpf_map_lookup_elem(&flags, &index);
	if (!page)
		return 1;
	if (granule >= m->first && granule + 7 <= m->last) {
		*(volatile __u64 *)&page->marked[granule & (PAGE_GRANULES - 8)] =
			0x0101010101010101ULL;
		return 0;
	}
	for (int i = 0; i < 8; i++) {
		if (granule + i >= m->first && granule + i <= m->last)
			*(volatile __u8 *)&page->marked[(granule + i) & (PAGE_GRANULES - 1)] = 1;
	}
	return 0;
}

static __noinline int mark_span(struct state *s, __u64 sector, __u64 sectors)
{
	__u64 first, last;

	if (!sectors)
		return 0;
	first = sector >> GRANULE_SHIFT;
	last = (sector + sectors - 1) >> GRANULE_SHIFT;
	if (last >= granules || last < first) {
		COUNT(s, beyond);
		/* What of it lies on the disk is marked all the same. */
		if (first >= granules)
			return 0;
		last = granules - 1;
	}
	mark(first);
	if (last != first)
		mark(last);
	if (last - first > 1) {
		struct middle m = { .first = first, .last = last };

		/* 8,388,608 turns at most: 4 TiB in one request, where 4 GiB is the limit. */
		bpf_loop((last >> 3) - (first >> 3) + 1, mark_word, &m, 0);
	}
	return 0;
}

/* -- disks with requests ------------------------------------------------------------------ */

struct walk {
	struct bio *bio;
	struct state *s;
};

static long mark_bio(__u64 turn, struct walk *w)
{
	struct bio *bio = w->bio;
	struct state *s = get_state();

	if (!bio || !s)
		return 1;
	mark_span(s, BPF_CORE_READ(bio, bi_iter.bi_sector),
		  ((__u64)BPF_CORE_READ(bio, bi_iter.bi_size) + 511) >> 9);
	w->bio = BPF_CORE_READ(bio, bi_next);
	return 0;
}

static __always_inline int is_ours(struct gendisk *disk)
{
	return disk && disk->major == disk_major && disk->first_minor == disk_minor;
}

static __always_inline struct gendisk *disk_of(struct request *rq)
{
	if (bpf_core_field_exists(rq->q->disk))
		return rq->q->disk;
	return ((struct request___before *)rq)->rq_disk;
}

static __always_inline int is_marked_by_range(__u32 op)
{
	return op == bpf_core_enum_value(enum req_op, REQ_OP_WRITE) ||
	       op == bpf_core_enum_value(enum req_op, REQ_OP_WRITE_ZEROES);
}

static __always_inline int is_discard(__u32 op)
{
	return op == bpf_core_enum_value(enum req_op, REQ_OP_DISCARD) ||
	       op == bpf_core_enum_value(enum req_op, REQ_OP_SECURE_ERASE);
}

static __always_inline int changes_nothing(__u32 op)
{
	return op == bpf_core_enum_value(enum req_op, REQ_OP_READ) ||
	       op == bpf_core_enum_value(enum req_op, REQ_OP_FLUSH);
}

/* ATA commands inside of SCSI ones that leave every sector as it is (ACS-4): what udev,
 * smartd and hdparm ask. */
static __always_inline int is_harmless_ata(__u8 command)
{
	switch (command) {
	case 0x2f: /* READ LOG EXT */
	case 0x47: /* READ LOG DMA EXT */
	case 0xa1: /* IDENTIFY PACKET DEVICE */
	case 0xb0: /* SMART */
	case 0xe0: /* STANDBY IMMEDIATE */
	case 0xe1: /* IDLE IMMEDIATE */
	case 0xe2: /* STANDBY */
	case 0xe3: /* IDLE */
	case 0xe5: /* CHECK POWER MODE */
	case 0xe7: /* FLUSH CACHE */
	case 0xea: /* FLUSH CACHE EXT */
	case 0xec: /* IDENTIFY DEVICE */
		return 1;
	}
	return 0;
}

/* SCSI commands that leave every block as it is (SPC-4, SBC-3). udev asks for the name of a
 * disk whenever somebody has closed it after writing, and smartd all day long. */
static __always_inline int is_harmless_scsi(const __u8 *cdb)
{
	switch (cdb[0]) {
	case 0x00: /* TEST UNIT READY */
	case 0x03: /* REQUEST SENSE */
	case 0x08: /* READ (6) */
	case 0x12: /* INQUIRY */
	case 0x1a: /* MODE SENSE (6) */
	case 0x1b: /* START STOP UNIT */
	case 0x1c: /* RECEIVE DIAGNOSTIC RESULTS */
	case 0x1e: /* PREVENT ALLOW MEDIUM REMOVAL */
	case 0x25: /* READ CAPACITY (10) */
	case 0x28: /* READ (10) */
	case 0x35: /* SYNCHRONIZE CACHE (10) */
	case 0x4d: /* LOG SENSE */
	case 0x5a: /* MODE SENSE (10) */
	case 0x5e: /* PERSISTENT RESERVE IN */
	case 0x88: /* READ (16) */
	case 0x91: /* SYNCHRONIZE CACHE (16) */
	case 0x9e: /* SERVICE ACTION IN (16): READ CAPACITY, GET LBA STATUS */
	case 0xa0: /* REPORT LUNS */
	case 0xa2: /* SECURITY PROTOCOL IN */
	case 0xa3: /* MAINTENANCE IN */
	case 0xa8: /* READ (12) */
		return 1;
	case 0x85: /* ATA PASS-THROUGH (16) */
		return is_harmless_ata(cdb[14]);
	case 0xa1: /* ATA PASS-THROUGH (12) */
		return is_harmless_ata(cdb[9]);
	}
	return 0;
}

static __noinline int is_harmless(struct request *rq, __u32 op, __u32 bytes)
{
	__u8 cdb[16] = {};
	const void *command;

	/* virtio_blk fetches the serial number so, each time sysfs is read, and has no other
	 * request that brings data in but the report of zones. */
	if (driver == DRIVER_VIRTIO_BLK)
		return op == bpf_core_enum_value(enum req_op, REQ_OP_DRV_IN) && bytes;
	if (driver != DRIVER_SCSI || !bpf_core_field_exists(struct scsi_cmnd, cmnd))
		return 0;
	command = (const void *)rq + bpf_core_type_size(struct request) +
		  bpf_core_field_offset(struct scsi_cmnd, cmnd);
	if (bpf_probe_read_kernel(cdb, sizeof(cdb), command))
		return 0;
	return is_harmless_scsi(cdb);
}

/* Counts what the kernel is about to add to the disk's statistics (blk_account_io_completion,
 * called right after the tracepoint; op_stat_group): user space compares the two, and sees
 * that way whether every completion was told to us. A write is what has an odd number. */
static __always_inline void count_sectors(struct request *rq, __u32 bytes, __u32 listener)
{
	__u32 op = rq->cmd_flags & OP_MASK;
	struct state *s = get_state();

	if (s && (op & 1) && op < bpf_core_enum_value(enum req_op, REQ_OP_DRV_IN) && rq->bio)
		__sync_fetch_and_add(&s->sectors[listener], bytes >> 9);
}

/* Returns whether something was marked. */
static __noinline int completed(struct request *rq, __u32 bytes)
{
	__u32 op = rq->cmd_flags & OP_MASK;
	__u64 sector = rq->__sector;
	struct state *s = get_state();

	if (!s)
		return 0;
	/* Sector -1: neither a read nor a write of the block layer. Before 5.15 SCSI had
	 * operations of its own below DRV_IN; those have no sector either. */
	if (op >= bpf_core_enum_value(enum req_op, REQ_OP_DRV_IN) || sector == ~0ULL) {
		/* A flush has no place either, and needs none. */
		if (changes_nothing(op))
			return 0;
		if (is_harmless(rq, op, bytes))
			COUNT(s, harmless);
		else
			COUNT(s, passthrough);
		return 0;
	}
	if (changes_nothing(op))
		return 0;
	if (is_discard(op)) {
		struct walk w = { .bio = rq->bio };

		if (!bytes)
			return 0;
		if (!w.bio) {
			not_understood(s, op);
			mark_span(s, sector, ((__u64)bytes + 511) >> 9);
			return 0;
		}
		/* Merged discards need not be neighbours: each bio tells its own range. */
		bpf_loop(MOST_BIOS, mark_bio, &w, 0);
		if (w.bio)
			not_understood(s, op);
		return 1;
	}
	if (is_marked_by_range(op)) {
		mark_span(s, sector, ((__u64)bytes + 511) >> 9);
		return bytes > 0;
	}
	/* Zones opened, closed, reset, appended to, and whatever comes to be. */
	not_understood(s, op);
	return 0;
}

/* A raw tracepoint's program is skipped where it is already at work on this processor: a
 * completion in an interrupt, while another one (of any disk) is looked at, would be lost
 * ("bpf: Prevent bpf program recursion for raw tracepoint probes", 05b24ff9b2cf). So the
 * same program listens three times: tasks, soft and hard interrupts are as deep as it goes,
 * and of three listeners two may be busy. Should it ever go deeper, it is counted: whoever
 * finds all three busy is preceded by one who finds two. */
static __always_inline void enter(void)
{
	__u32 zero = 0;
	__u32 *deep = bpf_map_lookup_elem(&depth, &zero);
	struct state *s = get_state();

	if (deep && ++*(volatile __u32 *)deep >= DEEPEST && s)
		COUNT(s, nested);
}

static __always_inline void leave(void)
{
	__u32 zero = 0;
	__u32 *deep = bpf_map_lookup_elem(&depth, &zero);

	if (deep)
		--*(volatile __u32 *)deep;
}

/* One of them counts the events; whatever breaks trust, each does. */
static __always_inline void count_event(void)
{
	struct state *s = get_state();

	if (s)
		s->events++;
}

#define REQUEST_LISTENER(name, number)                                                      \
	SEC("tp_btf/block_rq_complete")                                                     \
	int BPF_PROG(name, struct request *rq, int error, unsigned int bytes)               \
	{                                                                                   \
		enter();                                                                    \
		if (is_ours(disk_of(rq))) {                                                 \
			count_sectors(rq, bytes, number);                                   \
			if (completed(rq, bytes) && !(number))                              \
				count_event();                                              \
		}                                                                           \
		leave();                                                                    \
		return 0;                                                                   \
	}

REQUEST_LISTENER(request_1, 0)
REQUEST_LISTENER(request_2, 1)
REQUEST_LISTENER(request_3, 2)

/* -- disks without requests ---------------------------------------------------------------- */

/* Whether a bio writes, and says where. What is neither is counted. */
static __always_inline int writes(struct state *s, __u32 op)
{
	if (changes_nothing(op))
		return 0;
	if (op >= bpf_core_enum_value(enum req_op, REQ_OP_DRV_IN)) {
		COUNT(s, passthrough);
		return 0;
	}
	if (is_marked_by_range(op) || is_discard(op))
		return 1;
	not_understood(s, op);
	return 0;
}

SEC("tp_btf/block_bio_queue")
int BPF_PROG(bio_queued, struct bio *bio)
{
	struct block_device *device = bio->bi_bdev;
	struct state *s = get_state();
	__u64 key = (__u64)bio;
	struct span span;

	if (!s || !device || !is_ours(device->bd_disk) || !writes(s, bio->bi_opf & OP_MASK))
		return 0;
	span.sector = bio->bi_iter.bi_sector;
	span.sectors = ((__u64)bio->bi_iter.bi_size + 511) >> 9;
	if (!span.sectors)
		return 0;
	mark_span(s, span.sector, span.sectors);
	/* One that was queued before and never completed in our sight: its driver hands bios
	 * on to disks with requests, and the mark at completion is missing. */
	if (bpf_map_lookup_elem(&under_way, &key))
		COUNT(s, unseen);
	if (bpf_map_update_elem(&under_way, &key, &span, BPF_ANY))
		COUNT(s, queue_full);
	s->events++;
	return 0;
}

/* The three listeners find the bio one after another: the last one forgets it. */
static __noinline int bio_done(struct bio *bio, int last)
{
	__u64 key = (__u64)bio;
	struct block_device *device;
	struct state *s = get_state();
	struct span *span;

	if (!s || changes_nothing(bio->bi_opf & OP_MASK))
		return 0;
	span = bpf_map_lookup_elem(&under_way, &key);
	if (span) {
		mark_span(s, span->sector, span->sectors);
		if (last)
			bpf_map_delete_elem(&under_way, &key);
		return 0;
	}
	/* Queued before anybody listened. */
	device = bio->bi_bdev;
	if (device && is_ours(device->bd_disk))
		mark_span(s, bio->bi_iter.bi_sector, ((__u64)bio->bi_iter.bi_size + 511) >> 9);
	return 0;
}

#define BIO_LISTENER(name, last)                                                            \
	SEC("tp_btf/block_bio_complete")                                                    \
	int BPF_PROG(name, struct request_queue *q, struct bio *bio)                        \
	{                                                                                   \
		enter();                                                                    \
		bio_done(bio, last);                                                        \
		leave();                                                                    \
		return 0;                                                                   \
	}

BIO_LISTENER(bio_1, 0)
BIO_LISTENER(bio_2, 0)
BIO_LISTENER(bio_3, 1)

/* -- kernels without BTF ------------------------------------------------------------------- */

/* The classic tracepoint: all it tells is what stands in its record. A kernel skips it where
 * any program of this kind is at work on the processor, which nobody counts on older ones:
 * the user side does not trust it from one image to the next. */
SEC("tracepoint/block/block_rq_complete")
int classic(void *record)
{
	struct state *s = get_state();
	__u32 dev = 0, sectors = 0;
	__u64 sector = 0;
	char rwbs[4] = {};
	char letter;

	if (!s || bpf_probe_read_kernel(&dev, sizeof(dev), record + at_dev))
		return 0;
	if (dev != (disk_major << 20 | disk_minor))
		return 0;
	bpf_probe_read_kernel(&sector, sizeof(sector), record + at_sector);
	bpf_probe_read_kernel(&sectors, sizeof(sectors), record + at_nr_sector);
	bpf_probe_read_kernel(&rwbs, sizeof(rwbs), record + at_rwbs);
	/* A flush before the data is an F before the operation's letter. */
	letter = rwbs[0];
	if (letter == 'F' && rwbs[1])
		letter = rwbs[1];
	if (letter == 'R')
		return 0;
	if (sector == ~0ULL) {
		if (rwbs[0] == 'F')
			return 0;
		/* It has no other kind; of others the record does not tell the command. */
		if (driver == DRIVER_VIRTIO_BLK)
			COUNT(s, harmless);
		else
			COUNT(s, passthrough);
		return 0;
	}
	if (!sectors)
		return 0;
	__sync_fetch_and_add(&s->sectors[0], sectors);
	if (letter == 'D' && merges_discards)
		not_understood(s, 'D');
	mark_span(s, sector, sectors);
	s->events++;
	return 0;
}
