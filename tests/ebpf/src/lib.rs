//! What the benchmark and its programs in the kernel share.
#![no_std]

/// Length of every frame that is measured.
pub const FRAME: usize = 128;

/// Flows that the table holds.
pub const MAX_FLOWS: u32 = 4 * (1_000_000 + 64_000);

/// Places in the table of programs to jump to.
pub mod programs {
    /// Returns `XDP_TX`.
    pub const BARE: u32 = 0;
    /// Swaps the MAC addresses and returns `XDP_TX`.
    pub const NO_OP: u32 = 1;
    /// The program under test, with tables of the usual size.
    pub const USUAL: u32 = 2;
    /// The program under test, with tables for very many connections.
    pub const MOST: u32 = 3;
    /// The program under test, with tables of its own for new connections.
    pub const NEW: u32 = 4;
    pub const COUNT: usize = 5;
}

/// What the next runs do.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Plan {
    /// Which of [`programs`] to jump to.
    pub program: u32,
    /// Place of the first flow in the table.
    pub first: u32,
    /// Flows to go through, over and over.
    pub count: u32,
    /// The flow of the next run, below `count`.
    pub next: u32,
}

/// What is written over the frame before a run: that much of the packet differs between flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    /// Last four bytes of the source address.
    pub source: [u8; 4],
    /// Source and destination port.
    pub ports: [u8; 4],
}

#[cfg(not(target_arch = "bpf"))]
mod pod {
    // SAFETY: four integers, no padding.
    unsafe impl aya::Pod for super::Plan {}
    // SAFETY: bytes.
    unsafe impl aya::Pod for super::Flow {}
}
