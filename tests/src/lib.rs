//! The lab: hosts out of network namespaces, a stand-in for the kube-apiserver, the deployments that users run today,
//! and a client that counts. Tests, the demo and the virtual machines stand on it; it needs root.

pub mod apiserver;
pub mod bench;
pub mod carrier;
pub mod chaos;
pub mod client;
pub mod demo;
pub mod edition;
pub mod guest;
pub mod lab;
pub mod packets;
pub mod pair;
pub mod peer;
pub mod site;
pub mod topology;
pub mod traces;
pub mod wait;
pub mod watch;
pub mod xvip;
