//! An empty library: `lb-userspace` build-depends on it so that cargo knows this package.
#![no_std]
