//! The decision alone, run by `BPF_PROG_TEST_RUN` on facts in a packet: for comparing kernel and host.
#![no_std]
#![no_main]
#![allow(
    missing_docs,
    reason = "the program macros make public functions without the docs of ours"
)]

use aya_ebpf::EbpfContext;
use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_skb_load_bytes, bpf_skb_store_bytes},
    macros::classifier,
    programs::TcContext,
};
use enforcer_common::{
    replay::{self, CASE_OFFSET, Case, VERDICT_OFFSET},
    verdict::Verdict,
};
use enforcer_ebpf::tables::KernelTables;

/// Decides the case that follows an Ethernet header in the packet. Returns 0, with the verdict behind the case.
#[classifier]
pub fn replay(ctx: TcContext) -> i32 {
    let mut case = Case::default();
    let skb: *mut __sk_buff = ctx.as_ptr().cast();
    // SAFETY: writes the size of `Case`, of which every bit pattern is a value.
    let failed = unsafe {
        bpf_skb_load_bytes(
            skb.cast(),
            CASE_OFFSET as u32,
            (&raw mut case).cast(),
            size_of::<Case>() as u32,
        )
    };
    if failed != 0 {
        return -1;
    }
    let verdict = replay::answer(&KernelTables, &case);
    // SAFETY: as above, in the other direction.
    let failed = unsafe {
        bpf_skb_store_bytes(
            skb.cast(),
            VERDICT_OFFSET as u32,
            (&raw const verdict).cast(),
            size_of::<Verdict>() as u32,
            0,
        )
    };
    if failed != 0 { -1 } else { 0 }
}
