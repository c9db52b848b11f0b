// What the page's tokenizer makes of texts: {"tokenizer": FILE, "texts": [...]} on stdin, a list of
// {"ids", "text"} (or {"error"}) on stdout.
//
//   node tokenize.mjs path/of/web_page/tokenizer.js <request.json

import { readFileSync } from "node:fs";

// As data: node takes a plain .js file for CommonJS.
const source = readFileSync(process.argv[2], "utf8");
const { Tokenizer } = await import(`data:text/javascript,${encodeURIComponent(source)}`);
const request = JSON.parse(readFileSync(0, "utf8"));

function answer() {
  const tokenizer = new Tokenizer(JSON.parse(readFileSync(request.tokenizer, "utf8")));
  return request.texts.map((text) => {
    const ids = tokenizer.encode(text);
    return { ids, text: tokenizer.decode(ids) };
  });
}

try {
  console.log(JSON.stringify(answer()));
} catch (error) {
  console.log(JSON.stringify({ error: error.message }));
}
