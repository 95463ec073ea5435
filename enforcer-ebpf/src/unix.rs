//! The read gate for unix sockets that hand out secrets.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use enforcer_common::{
    event::Gate,
    ids::CredentialId,
    tables::{SOCKET_NAME_BYTES, SocketName, Versioned},
};

use crate::{
    emit::Object,
    file, forward, gate,
    kernel::{inode_key, read},
    maps::SOCKET_NAMES,
    offset,
    tables::settled,
    task,
};

/// `AF_UNIX`.
pub const FAMILY: u16 = 1;
/// `SOCK_DGRAM`.
const DATAGRAM: u16 = 2;

/// The current task reaches the socket at a kernel address, which waits for others. `true` refuses.
#[inline(always)]
pub fn reached(other: u64, gate: Gate) -> bool {
    if other == 0 {
        return false;
    }
    if gate.repeats() && forward::sent(other) {
        return true;
    }
    let path: u64 = read(other + offset!(unix_path) + offset!(path_dentry));
    // All zero, the key of no file, for a name outside the file systems.
    let key = inode_key(read(path + offset!(dentry_inode)));
    let credential = if path == 0 {
        by_name(other)
    } else {
        file::credential(&key)
    };
    credential.0 != 0 && gate::read(credential, Object::file(&key), gate)
}

/// The current task sends on the connected unix socket at a kernel address: as if it connected again, because the
/// entitlement may have ended, or the socket come from elsewhere. Datagrams have a hook of their own.
#[inline(always)]
pub fn sends(sk: u64) -> bool {
    if read::<u16>(sk + offset!(sk_type)) == DATAGRAM {
        return false;
    }
    // What a client connects to has the path and the name of the socket that listened.
    reached(read(sk + offset!(unix_peer)), Gate::UnixMaySend)
}

/// What a socket is by its name outside the file systems; 0 for nothing. In a frame of its own.
#[inline(never)]
fn by_name(other: u64) -> CredentialId {
    let address: u64 = read(other + offset!(unix_address));
    if address == 0 {
        return CredentialId(0);
    }
    let len: u32 = read(address + offset!(unix_address_len));
    // Family, and the NUL with which such a name begins.
    let name_len = len.wrapping_sub(3);
    let mut key = SocketName {
        len: u64::from(name_len),
        name: [0; 128],
    };
    if name_len == 0 || name_len as usize > SOCKET_NAME_BYTES {
        return CredentialId(0);
    }
    // SAFETY: reads at most the array's size; a failing read leaves zeroes.
    unsafe {
        bpf_probe_read_kernel(
            (&raw mut key.name).cast(),
            name_len & 0x7f,
            (address + offset!(unix_address_name) + 3) as *const _,
        );
    }
    let mut entry = Versioned::constant(CredentialId(0));
    if !settled(&SOCKET_NAMES, &key, &mut entry) {
        return CredentialId(0);
    }
    entry.at(task::generation())
}
