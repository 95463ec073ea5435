//! Arithmetic instead of branches: the verifier walks every combination of branches in a loop, and a
//! decision has many.

/// A number that the compiler knows nothing about, so that it does not turn arithmetic into branches, nor
/// unroll the loop that counts with it. The verifier still sees the number itself.
#[inline(always)]
pub fn opaque(number: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut number = number;
        // SAFETY: moves a register to itself. (Without an instruction of its own, two lines of source
        // would share one, and the kernel refuses such line information.)
        unsafe {
            core::arch::asm!("{0} = {0}", inout(reg) number, options(pure, nomem, nostack));
        }
        number
    }
    #[cfg(not(target_arch = "bpf"))]
    number
}

/// Reads a value again where it is needed, so that the compiler does not keep a copy: the stack is short.
#[inline(always)]
pub fn reload<T: Copy>(value: &T) -> T {
    // SAFETY: a reference is valid and initialised.
    unsafe { core::ptr::read_volatile(value) }
}

/// 1 if `a < b`, else 0.
#[inline(always)]
pub fn less(a: u64, b: u64) -> u64 {
    opaque(((!a & b) | ((!a | b) & a.wrapping_sub(b))) >> 63)
}

/// 1 if `a` is 0, else 0.
#[inline(always)]
pub fn is_zero(a: u64) -> u64 {
    less(a, 1)
}

/// All bits set if `bit` is 1, none if it is 0.
#[inline(always)]
pub fn all_ones(bit: u64) -> u64 {
    opaque(bit).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_is_the_comparison() {
        let edges = [0, 1, 2, i64::MAX as u64, 1 << 63, u64::MAX - 1, u64::MAX];
        for a in edges {
            for b in edges {
                assert_eq!(less(a, b), u64::from(a < b), "{a} < {b}");
            }
        }
        assert_eq!(all_ones(0), 0);
        assert_eq!(all_ones(1), u64::MAX);
    }
}
