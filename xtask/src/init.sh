#!/bin/sh
# The guest's first process: makes the machine look like one, runs the command, reports its status.
# /dev/ttyS0 has the kernel's messages, ttyS1 the command's output, ttyS2 what is said to xtask.

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root USER=root LOGNAME=root SHELL=/bin/sh TERM=dumb

/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s

mount -t sysfs sysfs /sys
# CONFIG_DEVTMPFS_MOUNT does not count for an initramfs.
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf -o mode=700 bpf /sys/fs/bpf
mount -t securityfs securityfs /sys/kernel/security
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
ln -s /proc/self/fd/1 /dev/stdout
ln -s /proc/self/fd/2 /dev/stderr

hostname guest
ip link set lo up

# These have no alias by which the kernel would find them, or their device node comes with them.
for module in loop tun fuse vsock_loopback dccp_ipv4 dccp_ipv6; do
	modprobe -q "$module" 2>/dev/null
done

exec 5>/dev/ttyS1 6>/dev/ttyS2
stty -F /dev/ttyS1 115200 raw -echo
stty -F /dev/ttyS2 115200 raw -echo

# A command may be silent for long; a guest that stands still may not.
(while sleep 5; do echo alive >&6; done) 5>&- &

echo ready >&6
cd /root
setsid sh /etc/vm/command </dev/null >&5 2>&1 5>&- 6>&-
status=$?

# stty waits until what was written has left the machine; switching off does not.
stty -F /dev/ttyS1 raw
echo "status $status" >&6
stty -F /dev/ttyS2 raw
poweroff -f
