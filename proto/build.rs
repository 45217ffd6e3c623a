//! Compiles the `.proto` files in pure Rust, so that nobody installs a compiler first.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["weft/ca/v1/ca.proto", "weft/report/v1/report.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
