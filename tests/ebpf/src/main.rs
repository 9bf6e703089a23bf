//! The benchmark's programs: a test run repeats without restoring the packet, so a program that rewrites must have the
//! packet stored anew before each run. `harness4` and `harness6` do that and jump to the program under test.
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]

#[cfg(target_arch = "bpf")]
mod harness {
    use aya_ebpf::{
        bindings::xdp_action,
        btf_maps::{Array, ProgramArray},
        macros::{btf_map, xdp},
        programs::XdpContext,
    };
    use lb_tests_ebpf::{FRAME, Flow, MAX_FLOWS, Plan, programs};

    #[btf_map]
    static PLAN: Array<Plan, 1> = Array::new();

    #[btf_map]
    static TEMPLATE: Array<[u64; FRAME / 8], 1> = Array::new();

    #[btf_map]
    static FLOWS: Array<Flow, { MAX_FLOWS as usize }> = Array::new();

    #[btf_map]
    static PROGRAMS: ProgramArray<{ programs::COUNT }> = ProgramArray::new();

    #[xdp]
    fn harness4(ctx: XdpContext) -> u32 {
        // The last four bytes of the IPv4 source address, and the ports behind a header without options.
        run::<26, 34>(&ctx).unwrap_or(xdp_action::XDP_ABORTED)
    }

    #[xdp]
    fn harness6(ctx: XdpContext) -> u32 {
        run::<34, 54>(&ctx).unwrap_or(xdp_action::XDP_ABORTED)
    }

    /// Returns only where something is missing.
    #[inline(always)]
    fn run<const SOURCE: usize, const PORTS: usize>(ctx: &XdpContext) -> Option<u32> {
        // SAFETY: one test run at a time uses the plan.
        let plan = unsafe { &mut *PLAN.get_ptr_mut(0)? };
        let flow = FLOWS.get(plan.first + plan.next)?;
        let next = plan.next + 1;
        plan.next = if next < plan.count { next } else { 0 };
        let template = TEMPLATE.get(0)?;
        let start = ctx.data();
        if start + FRAME > ctx.data_end() {
            return None;
        }
        // SAFETY: within the packet by the check above; the kernel takes any alignment here.
        unsafe {
            *(start as *mut [u64; FRAME / 8]) = *template;
            ((start + SOURCE) as *mut u32).write_unaligned(u32::from_ne_bytes(flow.source));
            ((start + PORTS) as *mut u32).write_unaligned(u32::from_ne_bytes(flow.ports));
            PROGRAMS.tail_call(ctx, plan.program);
        }
        None
    }

    /// What is subtracted.
    #[xdp]
    fn bare(_ctx: XdpContext) -> u32 {
        xdp_action::XDP_TX
    }

    /// What is divided by.
    #[xdp]
    fn no_op(ctx: XdpContext) -> u32 {
        let start = ctx.data();
        if start + 12 > ctx.data_end() {
            return xdp_action::XDP_ABORTED;
        }
        // SAFETY: within the packet by the check above; arrays of bytes may be anywhere.
        let [destination, source] = unsafe { &mut *(start as *mut [[u8; 6]; 2]) };
        core::mem::swap(destination, source);
        xdp_action::XDP_TX
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

/// Elsewhere this is an empty program, so that the commands of the workspace work on a stable compiler.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
