//! The `enforcer` daemon and command line.
fn main() {
    let mut e = match enforcer::kernel::load::load(&Default::default()) { Ok(e)=>e, Err(e)=>{ println!("{e:?}"); std::process::exit(1)} };
    for (n,p) in e.programs() { if let Ok(i)=p.info() { println!("{n} insns {:?} verified {:?}", i.size_translated(), i.verified_instruction_count()); } }
    match enforcer::kernel::load::attach(&mut e) { Ok(())=>println!("attached"), Err(e)=>println!("{e:?}") }
    std::thread::sleep(std::time::Duration::from_secs(2));
}
