//! The kernel side of xvip.
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]

#[cfg(target_arch = "bpf")]
mod bpf {
    use aya_ebpf::{macros::xdp, bindings::xdp_action, programs::XdpContext};
    #[xdp]
    pub fn xdp_ingress(_ctx: XdpContext) -> u32 { xdp_action::XDP_PASS }
    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo) -> ! { loop {} }
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}
#[cfg(not(target_arch = "bpf"))]
fn main() {}
