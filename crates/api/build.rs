//! Compiles `client.proto` with a compiler written in Rust, so that no `protoc` is needed. The
//! generated code goes to the build directory and is never committed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["proto/client.proto"], ["proto"])?;
    tonic_prost_build::configure()
        // Payloads are slices of the received buffer, not copies.
        .bytes(".")
        // The crate that opens a connection chooses the transport; this crate does not depend on
        // one.
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
