// Prints NASA's astronomy picture of the day: what api.nasa.gov says about
// today or, without an answer, the bundled sample. The last line says which.
'use strict';
const { getAsset } = require('node:sea');

// NASA's public key allows 30 requests an hour.
const key = process.env.NASA_API_KEY || 'DEMO_KEY';
const url = `https://api.nasa.gov/planetary/apod?api_key=${encodeURIComponent(key)}`;
const timeoutMs = 5000;
// Answers have about 2 KiB.
const maxAnswerBytes = 64 * 1024;

// ask returns what the API says about today, or throws.
async function ask() {
  const answer = await fetch(url, { signal: AbortSignal.timeout(timeoutMs) });
  if (!answer.ok) {
    throw new Error(`HTTP status ${answer.status}`);
  }
  const chunks = [];
  let size = 0;
  for await (const chunk of answer.body) {
    size += chunk.length;
    if (size > maxAnswerBytes) {
      throw new Error(`an answer of more than ${maxAnswerBytes} bytes`);
    }
    chunks.push(chunk);
  }
  const picture = JSON.parse(Buffer.concat(chunks).toString());
  if (!picture?.title || !picture.date) {
    throw new Error('an answer without title and date');
  }
  return picture;
}

// line makes one line of anything: what comes from a network must not move the
// cursor of a terminal.
function line(value) {
  return String(value).replace(/[\p{Cc}\p{Zl}\p{Zp}]+/gu, ' ').trim();
}

function print(picture, source) {
  console.log(`${line(picture.title)} (${line(picture.date)})`);
  for (const detail of [picture.copyright, picture.explanation, picture.url]) {
    if (detail) {
      console.log(line(detail));
    }
  }
  console.log(`Source: ${source}`);
}

ask().then(
  (picture) => print(picture, 'api.nasa.gov, asked just now'),
  (error) => {
    const reason = line(error.cause?.code ?? error.message);
    print(JSON.parse(getAsset('sample.json', 'utf8')), `the bundled sample, because api.nasa.gov gave no picture: ${reason}`);
  },
);
