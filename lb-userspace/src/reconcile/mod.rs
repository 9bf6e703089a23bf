//! From what is wanted to what is done: configuration, health and host make a [`Desired`] state, and [`plan`] the changes that
//! lead there.

mod desired;
mod numbers;
mod orders;
mod plan;
mod returns;
mod taking;
mod way;

pub use desired::{Desired, Inputs, TooMany, desired};
pub use numbers::{Endpoint, Numbers, Removed, service};
pub use orders::{Order, Orders, Request, Wish, Written};
pub use plan::{Applied, plan};
pub use returns::Returns;
pub use way::{Part, Surroundings, Turned, Way, forwarders, holds, turned, way};
