//! What decides about a packet, the same on the host and in the kernel, and the layout of what the two share.
//!
//! No clock, no socket and no map lives here: time is a parameter and tables are traits.
#![no_std]
// For the two atomic instructions of `shared`.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(any(test, feature = "user"))]
extern crate std;

pub mod abi;
pub mod address;
pub mod checksum;
pub mod conntrack;
pub mod datapath;
pub mod flow;
pub mod frame;
#[cfg(any(test, feature = "user"))]
pub mod host;
pub mod maglev;
#[cfg(any(test, feature = "user"))]
pub mod rotation;
pub mod shared;
pub mod table;
pub mod wire;
