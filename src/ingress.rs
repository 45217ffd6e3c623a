//! `weft ingress`: the gateway at the edge, and the collector of the sidecars' reports.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use weft_dataplane::node;
use weft_dataplane::plan::services::INGRESS;
use weft_ingress::collector::Collector;
use weft_runtime::config::{Problems, watched};

use crate::config::{self, Checked, Reader, collector_port};
use crate::pages;
use crate::role::{self, ProxyFlags};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    flags: ProxyFlags,
}

pub(crate) fn run(args: Args) -> ExitCode {
    let start = match role::start(&args.flags.flags, Reader::Ingress) {
        Ok(start) => start,
        Err(code) => return code,
    };
    role::run(start, move |mut start, running| {
        let token = args.flags.token()?;
        let resolver = Arc::clone(&start.checked.resolver);
        let design = start
            .checked
            .ingress
            .take()
            .ok_or("this file has no ingress")?;
        // A gateway without a mesh behind it and without reports to collect needs nobody's certificate.
        let needs_identity = design.needs_identity() || start.checked.file.collector.is_some();
        let source = match needs_identity {
            true => role::identity_source(&start.checked, INGRESS, &resolver, token)?,
            false => None,
        };
        let (publisher, designs) = watched(design);
        pages::add(running, &designs);
        let host = start.host;
        role::follow(running, &start, publisher, move |name, base, text| {
            config::check(name, text, base, host, Reader::Ingress)?
                .ingress
                .ok_or_else(Problems::new)
        });
        let collecting = collecting(&start.checked, start.host).map(|address| {
            let collector = Collector::new();
            let registry = Arc::clone(&running.process.registry);
            collector.include(INGRESS, &start.instance(INGRESS), registry);
            let shown = Arc::clone(&collector);
            running.metrics.on_render(Box::new(move || shown.publish()));
            let shown = Arc::clone(&collector);
            running.metrics.on_page(Box::new(move |page| {
                shown.render(page, Instant::now(), SystemTime::now());
            }));
            let shown = Arc::clone(&collector);
            let page = move || ("application/json", shown.page(Instant::now()).json());
            running.admin.page(
                "/mesh",
                "the mesh as its sidecars report it",
                Arc::new(page),
            );
            (collector, address)
        });
        let (process, size) = (running.process.clone(), args.flags.size());
        let listening = node::not_listening(&process);
        Ok(async move {
            let identity = match source {
                Some(source) => match node::identity(&process, source).await {
                    Some(identity) => Some(identity),
                    None => return Ok(()),
                },
                None => None,
            };
            weft_ingress::run(
                process, size, resolver, designs, identity, collecting, listening,
            )
            .await
        })
    })
}

/// Where the collector listens: the port that sidecars use, on this host.
fn collecting(checked: &Checked, host: Option<IpAddr>) -> Option<SocketAddr> {
    let address = &checked.file.collector.as_ref()?.address;
    let port = collector_port(address)?;
    let own = address
        .parse()
        .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address: SocketAddr| {
            address.ip()
        });
    Some(SocketAddr::new(host.unwrap_or(own), port))
}
