//! Who has the VIP, and what its loss costs a client: watched a thousand times a second, with the kernel's timestamps.

mod echo;
mod pace;
mod prober;

pub use self::{
    echo::Echo,
    pace::{PERIOD, between},
    prober::{Claim, Prober, at_once, mac},
};
