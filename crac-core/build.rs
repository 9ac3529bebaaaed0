//! Declares the `links` key: two copies of crac-core in one program would be two coordinators that know nothing of each
//! other, so cargo refuses to build such a graph.
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
