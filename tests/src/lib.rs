//! The lab and what the tests that need root share.

pub mod guest;
pub mod packets;
