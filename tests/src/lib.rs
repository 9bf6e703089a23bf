//! The lab: hosts out of network namespaces, a stand-in for the kube-apiserver, the deployments that users run today,
//! and a client that counts. Tests and the demo stand on it; it needs root.

pub mod apiserver;
pub mod client;
pub mod lab;
pub mod topology;
pub mod wait;
