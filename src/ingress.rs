//! `weft ingress`: the gateway at the edge, and the collector of the sidecars' reports.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use weft_dataplane::identity::TokenSource;
use weft_dataplane::node::{self, Who};
use weft_dataplane::plan::services::INGRESS;
use weft_ingress::collector::Collector;
use weft_runtime::config::watched;

use crate::config::{Checked, Reader, collector_port};
use crate::pages;
use crate::role::{self, ProxyFlags, Taken};

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
        // One that was handed over at the start is good for minutes, and the first route into the mesh may come in a year.
        let is_fleeting = matches!(token, Some(TokenSource::Given(_)));
        let resolver = Arc::clone(&start.checked.resolver);
        let design = start
            .checked
            .ingress
            .take()
            .ok_or("this file has no ingress")?;
        // A gateway without a mesh behind it and without reports to collect needs nobody's certificate, and does not wait
        // for one; it asks for it when a route into the mesh comes, or while its token is good.
        let needs_identity = design.needs_identity() || start.checked.file.collector.is_some();
        let source = role::identity_source(running, &start.checked, INGRESS, &resolver, token)?;
        let (publisher, designs) = watched(design);
        pages::add(running);
        role::follow(running, &start, move |checked| {
            checked.ingress.map(|design| publisher.publish(design));
            Taken::HandedOn
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
            let who = match source {
                Some(source) if needs_identity => match node::identity(&process, source).await {
                    Some(identity) => Who::known(identity),
                    None => return Ok(()),
                },
                Some(source) if is_fleeting => Who::soon(source),
                source => Who::later(source),
            };
            weft_ingress::run(process, size, resolver, designs, who, collecting, listening).await
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
