//! The Volume Daemon, the VMware appliance, LINSTOR and virt-v2v of the pretend data centre, over real HTTP and as real
//! processes: each call has the shape of the real one, and each of the real one's defects can be seen.

mod daemon;
mod devices;
mod linstor;
mod replication;
mod sources;
mod support;
mod virt_v2v;
