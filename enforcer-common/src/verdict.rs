//! What a decision says.

use crate::ids::{CredentialId, EntitlementId};

/// Declares an enum that crosses the kernel boundary as one byte, with its name in documents.
macro_rules! code {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $value:literal => $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant = $value,)+ }

        impl $name {
            /// Every value, in numeric order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The value behind a byte read from a table or an event; `None` if there is no such value.
            #[inline(always)]
            pub const fn from_u8(byte: u8) -> Option<Self> {
                match byte { $($value => Some(Self::$variant),)+ _ => None }
            }

            /// The name used in bundles, events and documents.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}
pub(crate) use code;

code!(
    /// Why a use was denied. The numeric order is the order of precedence: of several true reasons the
    /// smallest is given, because it tells most.
    Reason {
        /// The entitlement or the credential was revoked.
        Revoked = 1 => "revoked",
        /// The entitlement has ended.
        Expired = 2 => "expired",
        /// The entitlement has not begun.
        NotYetValid = 3 => "not-yet-valid",
        /// The entitlement's schedule does not include this moment.
        OutsideSchedule = 4 => "outside-schedule",
        /// An entitlement is in force, but not for this destination.
        OutsideDestination = 5 => "outside-destination",
        /// Holders may not have this kind of socket.
        SocketFamily = 6 => "socket-family",
        /// The packet's headers say something else than the call did.
        AlteredPacket = 7 => "altered-packet",
        /// The destination is another process on this node and is not listed.
        LocalPeer = 8 => "local-peer",
        /// Too many destinations in a short time.
        FanOutExceeded = 9 => "fan-out-exceeded",
        /// Everything fits but the executable.
        WrongExecutable = 10 => "wrong-executable",
        /// The credential has entitlements, none of them for this workload.
        WrongWorkload = 11 => "wrong-workload",
        /// The credential has no entitlement at all.
        NoEntitlement = 12 => "no-entitlement",
        /// It is not known yet which workload this is.
        UnclassifiedWorkload = 13 => "unclassified-workload",
        /// The holder has read more credentials than can be tracked.
        TooManyHeld = 14 => "too-many-held",
        /// The bundle itself has expired.
        BundleExpired = 15 => "bundle-expired",
        /// A canary of this node got through: until none does, no holder may reach anything.
        Degraded = 16 => "degraded",
    }
);

code!(
    /// Whether denials take effect.
    Mode {
        /// Permit, and record what would have been denied.
        Monitor = 0 => "monitor",
        /// Deny.
        Enforce = 1 => "enforce",
    }
);

code!(
    /// What follows a denial in enforce mode. Of two, the one with the higher number is the stricter; the lowest bit
    /// says whether the process is killed at once, by the kernel.
    Action {
        /// The call fails with EPERM.
        Block = 0 => "block",
        /// The call fails with EPERM and the process gets SIGKILL before the call returns.
        Kill = 1 => "kill",
        /// The call fails with EPERM, and the daemon freezes the workload instance.
        Freeze = 2 => "freeze",
        /// As kill, and the daemon kills the whole workload instance.
        KillWorkload = 3 => "kill-workload",
    }
);

/// The answer of [`crate::decide::read`] and [`crate::decide::reach`], in one word: a function that returns
/// more would leave a stack pointer in the register of results, which the verifier refuses.
///
/// Bits 0 to 4 are the [`Reason`] of a denial or 0, bit 5 is set if anything was decided, bit 6 if the task
/// is trusted, bit 7 is the [`Mode`], bits 8 and 9 the [`Action`]; 27 bits each of the entitlement and of the credential
/// follow.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Verdict(pub u64);

impl Verdict {
    /// Nothing to decide: not a protected object, or not a holder. Nothing is recorded.
    pub const PASS: Self = Self(0);

    const REASON: u64 = 0x1f;
    const GOVERNED: u64 = 1 << 5;
    const TRUSTED: u64 = 1 << 6;
    const MODE_SHIFT: u32 = 7;
    const ACTION_SHIFT: u32 = 8;
    const ACTION: u64 = 3;
    const ENTITLEMENT_SHIFT: u32 = 10;
    const CREDENTIAL_SHIFT: u32 = 37;

    /// Largest number of an entitlement or a credential.
    pub const ID_MAX: u32 = (1 << 27) - 1;

    /// What was decided. `reason` is 0 for allow; of `mode` the lowest bit counts, of `action` the lowest two.
    #[inline(always)]
    pub const fn new(
        reason: u64,
        trusted: bool,
        mode: u64,
        action: u64,
        credential: CredentialId,
        entitlement: EntitlementId,
    ) -> Self {
        Self(
            (reason & Self::REASON)
                | Self::GOVERNED
                | (trusted as u64) << 6
                | (mode & 1) << Self::MODE_SHIFT
                | (action & Self::ACTION) << Self::ACTION_SHIFT
                | ((entitlement.0 & Self::ID_MAX) as u64) << Self::ENTITLEMENT_SHIFT
                | (credential.0 as u64) << Self::CREDENTIAL_SHIFT,
        )
    }

    /// Nothing was decided about a credential, but it is to be recorded.
    #[inline(always)]
    pub const fn forwarded(credential: CredentialId) -> Self {
        Self::new(
            0,
            false,
            Mode::Enforce as u64,
            Action::Block as u64,
            credential,
            EntitlementId(0),
        )
    }

    /// The same, but denied for this reason.
    #[inline(always)]
    pub const fn because(self, reason: Reason) -> Self {
        Self(self.0 & !Self::REASON | Self::GOVERNED | reason as u64)
    }

    /// The same, but in enforce mode and without more than a refusal.
    #[inline(always)]
    pub const fn enforced(self) -> Self {
        Self(self.blocked().0 | 1 << Self::MODE_SHIFT)
    }

    /// The same, but without more than a refusal.
    #[inline(always)]
    pub const fn blocked(self) -> Self {
        Self(self.0 & !(Self::ACTION << Self::ACTION_SHIFT))
    }

    /// Why it is denied; `None` allows.
    #[inline(always)]
    pub const fn denied(self) -> Option<Reason> {
        Reason::from_u8(self.reason())
    }

    /// The [`Reason`] as a number; 0 allows.
    #[inline(always)]
    pub const fn reason(self) -> u8 {
        (self.0 & Self::REASON) as u8
    }

    /// Whether anything was decided at all. If not, nothing is recorded.
    #[inline(always)]
    pub const fn governed(self) -> bool {
        self.0 & Self::GOVERNED != 0
    }

    /// Whether the task is one of the bundle's trusted workloads, which never become holders.
    #[inline(always)]
    pub const fn trusted(self) -> bool {
        self.0 & Self::TRUSTED != 0
    }

    /// What the entitlement, or else the bundle, says about denials.
    #[inline(always)]
    pub const fn mode(self) -> Mode {
        if self.0 >> Self::MODE_SHIFT & 1 != 0 {
            Mode::Enforce
        } else {
            Mode::Monitor
        }
    }

    /// What the entitlement, or else the bundle, says shall follow a denial.
    #[inline(always)]
    pub const fn action(self) -> Action {
        match Action::from_u8(self.action_code()) {
            Some(action) => action,
            None => Action::Block,
        }
    }

    /// The same as a number, without a path for each value.
    #[inline(always)]
    pub const fn action_code(self) -> u8 {
        (self.0 >> Self::ACTION_SHIFT & Self::ACTION) as u8
    }

    /// Whether the process is killed at once where the call is refused.
    #[inline(always)]
    pub const fn kills(self) -> bool {
        self.action_code() & 1 != 0
    }

    /// The credential that decided; for an allowed reach the one that covers the destination.
    #[inline(always)]
    pub const fn credential(self) -> CredentialId {
        CredentialId((self.0 >> Self::CREDENTIAL_SHIFT) as u32)
    }

    /// The entitlement that decided, or of a denial the nearest one.
    #[inline(always)]
    pub const fn entitlement(self) -> EntitlementId {
        EntitlementId((self.0 >> Self::ENTITLEMENT_SHIFT) as u32 & Self::ID_MAX)
    }

    /// Whether the call must fail: denied, and not merely monitored.
    #[inline(always)]
    pub const fn refuses(self) -> bool {
        self.reason() != 0 && matches!(self.mode(), Mode::Enforce)
    }
}

impl core::fmt::Debug for Verdict {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Verdict")
            .field("denied", &self.denied())
            .field("governed", &self.governed())
            .field("trusted", &self.trusted())
            .field("mode", &self.mode())
            .field("action", &self.action())
            .field("credential", &self.credential())
            .field("entitlement", &self.entitlement())
            .finish()
    }
}
