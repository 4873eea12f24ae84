#!/bin/sh
# What a kernel did to f2fs-aged-*.img before they were compressed (zstd -19): Linux 6.1 of
# Debian 12 in a virtual machine, because F2FS cannot be aged without its driver.
#
#   truncate -s 72M image   (full: the segment table's second set counts, full summaries)
#   truncate -s 128M image  (compact: six entries in the journal of compact summaries)
#   mkfs.f2fs -q image
#
# Then this, by busybox's tools, the image being $1. The digests in tests/unit/test_f2fs.py are
# of the checksums that the same kernel read in the end. On the smaller one `big` does not fit.
mount -t f2fs "$1" /mnt
cd /mnt || exit
mkdir -p d0 d1 d2 d3
i=0
while [ $i -lt 600 ]; do
    yes "file $i" | head -c $((i * 700 % 90000 + 1)) >d$((i % 4))/f$i
    [ $((i % 50)) = 49 ] && sync
    [ $((i % 3)) = 0 ] && [ $i -gt 20 ] && rm -f d$(((i - 17) % 4))/f$((i - 17))
    i=$((i + 1))
done
sync
i=0
while [ $i -lt 200 ]; do
    [ -f d$((i % 4))/f$i ] && yes again | head -c 6144 |
        dd of=d$((i % 4))/f$i bs=1k seek=$((i % 11)) conv=notrunc,fsync
    i=$((i + 1))
done
yes big | head -c 12000000 >big
sync
i=0
while [ $i -lt 40 ]; do
    yes changed | head -c 12288 | dd of=big bs=4k seek=$((i * 67)) conv=notrunc
    i=$((i + 1))
done
sync
rm -rf d3
ln -s big link
ln big hard
sync
echo last >last
cd /
umount /mnt
for i in 0 1 2; do
    mount -t f2fs "$1" /mnt
    echo round$i >/mnt/round$i
    rm -f /mnt/d0/f$((i * 4 + 4))
    umount /mnt
done
