//! The configuration: one TOML file, parsed into a checked [`model`].

pub mod model;
