//! The daemon behind `xvip`, as a library so that the lab can drive its rooms one by one.

pub mod admin;
pub mod cli;
pub mod config;
pub mod dataplane;
pub mod health;
pub mod host;
pub mod reconcile;
pub mod supervisor;
pub mod sync;
pub mod vrrp;
