//! Compiles `kv.proto` with a compiler written in Rust, so that no `protoc` is needed. The
//! generated code goes to the build directory and is never committed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["proto/kv.proto"], ["proto"])?;
    // Keys and values are slices of the received buffer, not copies.
    prost_build::Config::new().bytes(["."]).compile_fds(descriptors)?;
    Ok(())
}
