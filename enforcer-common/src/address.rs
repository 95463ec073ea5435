//! Addresses as the decision sees them.

/// IPv6 address, or IPv4 as an IPv4-mapped IPv6 address, in network order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(8))]
pub struct Address(pub [u8; 16]);

impl Address {
    /// `::ffff:127.0.0.1`.
    pub const LOOPBACK_V4: Self = Self::from_v4([127, 0, 0, 1]);
    /// `::1`.
    pub const LOOPBACK_V6: Self = Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

    /// An IPv4 address, mapped.
    #[inline(always)]
    pub const fn from_v4(octets: [u8; 4]) -> Self {
        Self([
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, octets[0], octets[1], octets[2], octets[3],
        ])
    }

    /// What the kernel will really contact: the unspecified address means this host.
    #[inline(always)]
    pub fn effective(self) -> Self {
        let (high, low) = self.halves();
        if high != 0 {
            return self;
        }
        if low == 0 {
            return Self::LOOPBACK_V6;
        }
        if low == 0x0000_ffff_0000_0000 {
            return Self::LOOPBACK_V4;
        }
        self
    }

    /// Whether this is another process on this host: 127.0.0.0/8 or ::1.
    #[inline(always)]
    pub fn is_loopback(self) -> bool {
        let (high, low) = self.halves();
        high == 0 && (low == 1 || low >> 24 == 0x0000_ffff_7f)
    }

    #[inline(always)]
    fn halves(self) -> (u64, u64) {
        let b = &self.0;
        (
            u64::from_be_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
            u64::from_be_bytes([b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]),
        )
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
}

/// Where something is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Destination {
    /// The address, [`Address::effective`].
    pub address: Address,
    /// Port in host order; 0 where the protocol has none.
    pub port: u16,
    /// The transport protocol.
    pub protocol: Protocol,
    /// Always 0.
    pub reserved: [u8; 5],
}

impl Destination {
    /// A destination; the unspecified address becomes loopback.
    #[inline(always)]
    pub fn new(address: Address, port: u16, protocol: Protocol) -> Self {
        Self {
            address: address.effective(),
            port,
            protocol,
            reserved: [0; 5],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unspecified_means_this_host() {
        assert_eq!(
            Address::from_v4([0, 0, 0, 0]).effective(),
            Address::LOOPBACK_V4
        );
        assert_eq!(Address([0; 16]).effective(), Address::LOOPBACK_V6);
        let other = Address::from_v4([10, 0, 0, 1]);
        assert_eq!(other.effective(), other);
    }

    #[test]
    fn loopback_is_127_slash_8_and_one() {
        for octets in [[127, 0, 0, 1], [127, 255, 1, 2]] {
            assert!(Address::from_v4(octets).is_loopback());
        }
        assert!(Address::LOOPBACK_V6.is_loopback());
        for octets in [[126, 255, 255, 255], [128, 0, 0, 0], [10, 127, 0, 1]] {
            assert!(!Address::from_v4(octets).is_loopback());
        }
        let mut v6 = [0; 16];
        v6[0] = 0xfd;
        v6[15] = 1;
        assert!(!Address(v6).is_loopback());
    }
}
