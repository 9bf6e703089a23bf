//! Which of it the daemon may read and write as bytes.

use super::{
    Access, Backend, BackendId, Fence, Hashing, Lease, Local, Policy, Port, ServiceId, ServiceKey, Settings, Source,
    Traffic,
};

/// SAFETY of all: `repr(C)` or `repr(transparent)` over integers and arrays of them, no implicit padding, every bit
/// pattern valid.
macro_rules! pod {
    ($($type:ty),*) => { $(
        // SAFETY: see above.
        unsafe impl aya::Pod for $type {}
    )* };
}
pod!(
    Access, BackendId, ServiceId, ServiceKey, Source, Backend, Local, Traffic, Port, Settings, Lease, Fence, Hashing,
    Policy
);
