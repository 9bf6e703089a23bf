//! Options for the BPF linker.

fn main() {
    let bpf = std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "bpf");
    if bpf {
        // As lb-ebpf has it: frames are copied by words, not by bytes.
        println!("cargo:rustc-link-arg-bins=--cpu-features=+allows-misaligned-mem-access");
    }
}
