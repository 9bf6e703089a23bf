//! Options for the BPF linker.

fn main() {
    let bpf = std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "bpf");
    if bpf {
        // Addresses in packets are aligned to 2 at best. Without this, LLVM reads them a byte at a time; the verifier has
        // never asked for alignment on machines with efficient unaligned access (x86-64 and arm64 among them).
        println!("cargo:rustc-link-arg-bins=--cpu-features=+allows-misaligned-mem-access");
    }
}
