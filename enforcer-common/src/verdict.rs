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
    /// What follows a denial in enforce mode.
    Action {
        /// The call fails with EPERM.
        Block = 0 => "block",
        /// The call fails with EPERM and the process gets SIGKILL before the call returns.
        Kill = 1 => "kill",
    }
);

/// The answer of [`crate::decide::read`] and [`crate::decide::reach`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// `None` allows; a reason denies.
    pub denied: Option<Reason>,
    /// Whether anything was decided at all: `false` for what is not protected, and for a task that
    /// holds nothing. Nothing is recorded then.
    pub governed: bool,
    /// Whether the task is one of the bundle's trusted workloads, which never become holders.
    pub trusted: bool,
    /// What the entitlement, or else the bundle, says about denials.
    pub mode: Mode,
    /// What the entitlement, or else the bundle, says shall follow a denial.
    pub action: Action,
    /// The credential that decided; for an allowed `reach` the one that covers the destination.
    pub credential: CredentialId,
    /// The entitlement that decided, or of a denial the nearest one.
    pub entitlement: EntitlementId,
}

impl Verdict {
    /// Nothing to decide: not a protected object, or not a holder.
    pub const PASS: Self = Self {
        denied: None,
        governed: false,
        trusted: false,
        mode: Mode::Monitor,
        action: Action::Block,
        credential: CredentialId(0),
        entitlement: EntitlementId(0),
    };

    /// Whether the call must fail: denied, and not merely monitored.
    #[inline(always)]
    pub const fn refuses(&self) -> bool {
        self.denied.is_some() && matches!(self.mode, Mode::Enforce)
    }
}
