//! The kernel side of xvip: programs and maps. What they decide is in `lb-common`.
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]

#[cfg(target_arch = "bpf")]
mod frame;
#[cfg(target_arch = "bpf")]
mod functions;
#[cfg(target_arch = "bpf")]
mod local;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod programs;
#[cfg(target_arch = "bpf")]
mod tables;

/// Nothing reaches this: `cargo xtask test` fails on any panic symbol in the object.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// `bpf_fib_lookup` and others are for GPL-compatible programs only (kernel: `license_is_gpl_compatible`).
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Elsewhere this is an empty program, so that the commands of the workspace work on a stable compiler.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
