export default function Page() {
  return <p>GET and POST /accounts?client=NAME&amp;worker=NUMBER</p>;
}
