/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the kernel side and the user side agree on; the user side's copy is ../shared.py,
 * and a test compares the two. */
#ifndef FREEZEFRAME_TRACKER_H
#define FREEZEFRAME_TRACKER_H

/* 64 KiB of a disk, in sectors of 512 bytes, is one granule: one byte of flags. */
#define GRANULE_SHIFT 7
/* Flags lie in values of one page, for an element of an array map may not exceed
 * KMALLOC_MAX_SIZE on older kernels. They are contiguous under mmap. */
#define PAGE_SHIFT 12
#define PAGE_GRANULES (1 << PAGE_SHIFT)
/* A discard request of more bios than this is not understood; the block layer's own limit
 * (queue/max_discard_segments) is 256 for the greediest driver. */
#define MOST_BIOS 65536
/* Bios of a bio-based disk that may be under way at once. */
#define MOST_UNDER_WAY 65536
/* task, softirq, hardirq: how deep completions nest on one processor. */
#define DEEPEST 3
/* Listeners to the completion of a request: as many as may be busy at once, see there. */
#define LISTENERS 3

#define DRIVER_OTHER 0
#define DRIVER_VIRTIO_BLK 1
#define DRIVER_SCSI 2

#define STATE_GENERATION 0
#define STATE_EVENTS 16
#define STATE_PASSTHROUGH 24
#define STATE_HARMLESS 32
#define STATE_BEYOND 40
#define STATE_UNKNOWN 48
#define STATE_NESTED 56
#define STATE_QUEUE_FULL 64
#define STATE_UNSEEN 72
#define STATE_LAST_UNKNOWN 80
#define STATE_SECTORS 88
#define STATE_SIZE 112

#endif
