//! Stand-in until the data plane room lands: only the embedded object.

/// The kernel side, as built by this package's build script.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/xvip-ebpf"));
