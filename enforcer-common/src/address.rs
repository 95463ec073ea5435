//! Addresses as the decision sees them: whole words, which the kernel side moves and compares as they are.

use crate::branchless::{all_ones, is_zero};

/// IPv6 address, or IPv4 as an IPv4-mapped IPv6 address: its sixteen bytes, in network order, as two words
/// in memory order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Address {
    /// Bytes 0 to 7.
    pub high: u64,
    /// Bytes 8 to 15.
    pub low: u64,
}

impl Address {
    /// `::ffff:127.0.0.1`.
    pub const LOOPBACK_V4: Self = Self::from_v4(u32::from_ne_bytes([127, 0, 0, 1]));
    /// `::1`.
    pub const LOOPBACK_V6: Self = Self {
        high: 0,
        low: 1_u64.to_be(),
    };
    /// Bytes 8 to 11 of a mapped IPv4 address.
    const MAPPED: u64 = 0x0000_ffff_0000_0000_u64.to_be();

    /// An IPv4 address, given as the word that its four bytes make in memory; mapped.
    #[inline(always)]
    pub const fn from_v4(word: u32) -> Self {
        Self {
            high: 0,
            low: Self::MAPPED | (word as u64) << 32,
        }
    }

    /// An address from its bytes in network order.
    pub const fn from_octets(o: [u8; 16]) -> Self {
        Self {
            high: u64::from_ne_bytes([o[0], o[1], o[2], o[3], o[4], o[5], o[6], o[7]]),
            low: u64::from_ne_bytes([o[8], o[9], o[10], o[11], o[12], o[13], o[14], o[15]]),
        }
    }

    /// The bytes in network order.
    pub const fn octets(self) -> [u8; 16] {
        let (h, l) = (self.high.to_ne_bytes(), self.low.to_ne_bytes());
        [
            h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7], l[0], l[1], l[2], l[3], l[4], l[5],
            l[6], l[7],
        ]
    }

    /// What the kernel will really contact: the unspecified address means this host.
    #[inline(always)]
    pub fn effective(self) -> Self {
        let v4 = is_zero(self.high | self.low ^ Self::MAPPED);
        let v6 = is_zero(self.high | self.low);
        Self {
            high: self.high,
            low: self.low
                | Self::LOOPBACK_V4.low & all_ones(v4)
                | Self::LOOPBACK_V6.low & all_ones(v6),
        }
    }

    /// Whether this is another process on this host: 127.0.0.0/8 or ::1.
    #[inline(always)]
    pub fn is_loopback(self) -> bool {
        self.high == 0
            && (self.low == Self::LOOPBACK_V6.low
                || self.low << 24 == (Self::LOOPBACK_V4.low & 0xff_ffff_ffff) << 24)
    }
}

/// IP protocol number (`IPPROTO_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Protocol(pub u8);

impl Protocol {
    /// `IPPROTO_ICMP`, 1; ICMPv6 is folded into it.
    pub const ICMP: Self = Self(1);
    /// `IPPROTO_TCP`, 6.
    pub const TCP: Self = Self(6);
    /// `IPPROTO_UDP`, 17.
    pub const UDP: Self = Self(17);

    /// The protocol under which scopes keep whom a workload may answer: from 128 on, where no number is in use
    /// for what a holder may send.
    #[inline(always)]
    pub const fn answering(self) -> Self {
        Self(self.0 | 0x80)
    }
}

/// Where something is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Destination {
    /// The address, [`Address::effective`].
    pub address: Address,
    /// Port (bits 0 to 15) and protocol (16 to 23).
    transport: u64,
}

impl Destination {
    /// No destination: what a read has.
    pub const NONE: Self = Self {
        address: Address { high: 0, low: 0 },
        transport: 0,
    };

    /// A destination that no packet has: the unspecified address, by a protocol that does not exist.
    pub const NOWHERE: Self = Self {
        address: Address { high: 0, low: 0 },
        transport: 0xff_0000,
    };

    /// A destination; the unspecified address becomes loopback. The port is in host order, and 0 where the
    /// protocol has none.
    #[inline(always)]
    pub fn new(address: Address, port: u16, protocol: Protocol) -> Self {
        Self {
            address: address.effective(),
            transport: (protocol.0 as u64) << 16 | port as u64,
        }
    }

    /// An answer on a connection that was accepted from a client at `address`, by what listens on `port`. As a
    /// destination of a protocol of its own, so that it has rows of its own in a scope.
    #[inline(always)]
    pub fn answer(address: Address, port: u16, protocol: Protocol) -> Self {
        Self::new(address, port, protocol.answering())
    }

    /// A kind of socket, where a record has no destination: `AF_*`, `SOCK_*`, `IPPROTO_*`.
    #[inline(always)]
    pub const fn socket(family: u32, kind: u32, protocol: u32) -> Self {
        Self {
            address: Address {
                high: family as u64,
                low: (kind as u64) << 32 | protocol as u64,
            },
            transport: Self::SOCKET,
        }
    }

    /// What was done to the enforcer, where a record has no destination: three words, which mean what the gate says.
    #[inline(always)]
    pub const fn detail(words: [u64; 3]) -> Self {
        let [high, low, transport] = words;
        Self {
            address: Address { high, low },
            transport,
        }
    }

    /// The words of [`Destination::detail`].
    pub const fn as_detail(&self) -> [u64; 3] {
        [self.address.high, self.address.low, self.transport]
    }

    /// Family, type and protocol, if this is a kind of socket.
    pub const fn as_socket(&self) -> Option<(u32, u32, u32)> {
        if self.transport != Self::SOCKET {
            return None;
        }
        let Address { high, low } = self.address;
        Some((high as u32, (low >> 32) as u32, low as u32))
    }

    /// Marks a kind of socket; no transport has it.
    const SOCKET: u64 = 1 << 24;

    /// The port in host order.
    #[inline(always)]
    pub const fn port(&self) -> u16 {
        self.transport as u16
    }

    /// The transport protocol.
    #[inline(always)]
    pub const fn protocol(&self) -> Protocol {
        Protocol((self.transport >> 16) as u8)
    }

    /// Port and protocol as one word, see [`Destination::from_words`].
    #[inline(always)]
    pub const fn transport(&self) -> u64 {
        self.transport
    }

    /// The destination behind an address and [`Destination::transport`].
    #[inline(always)]
    pub const fn from_words(address: Address, transport: u64) -> Self {
        Self { address, transport }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(octets: [u8; 4]) -> Address {
        Address::from_v4(u32::from_ne_bytes(octets))
    }

    #[test]
    fn unspecified_means_this_host() {
        assert_eq!(v4([0, 0, 0, 0]).effective(), Address::LOOPBACK_V4);
        assert_eq!(Address::default().effective(), Address::LOOPBACK_V6);
        let other = v4([10, 0, 0, 1]);
        assert_eq!(other.effective(), other);
    }

    #[test]
    fn loopback_is_127_slash_8_and_one() {
        for octets in [[127, 0, 0, 1], [127, 255, 1, 2]] {
            assert!(v4(octets).is_loopback(), "{octets:?}");
        }
        assert!(Address::LOOPBACK_V6.is_loopback());
        for octets in [[126, 255, 255, 255], [128, 0, 0, 0], [10, 127, 0, 1]] {
            assert!(!v4(octets).is_loopback(), "{octets:?}");
        }
        let mut v6 = [0; 16];
        v6[0] = 0xfd;
        v6[15] = 1;
        assert!(!Address::from_octets(v6).is_loopback());
    }

    #[test]
    fn bytes_and_words_agree() {
        let octets = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        assert_eq!(Address::from_octets(octets).octets(), octets);
        assert_eq!(
            v4([1, 2, 3, 4]).octets(),
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 1, 2, 3, 4]
        );
    }
}
