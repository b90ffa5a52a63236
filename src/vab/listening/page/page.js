// One trial at a time: play all videos, answer, and go on once the server says that the answer is kept.
"use strict";

const HEARD = 0.9; // share of a video that must have been played
const RETRY = 2000; // milliseconds until a server that does not answer is asked again
const rater = location.pathname.split("/").pop();
const $ = (id) => document.getElementById(id);

const SURVEYS = {
  preference: {
    task: "Which of the two sounds is better?",
    how: "Both videos show the same picture, each with a sound of its own. Play both to the end, then answer.",
    questions: {
      quality: "Overall quality: which video sounds better?",
      relevance: "Fit to the picture: which sound belongs better to what you see?",
    },
    grades: ["Video 1, strongly", "Video 1, weakly", "No preference", "Video 2, weakly", "Video 2, strongly"],
  },
  mos: {
    task: "How good is this sound?",
    how: "Play the video to the end, then answer.",
    questions: { score: "How good is the sound of this video, all in all?" },
    grades: ["Bad", "Poor", "Fair", "Good", "Excellent"],
  },
};

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function say(title, text, again = false) {
  $("trial").hidden = true;
  $("hint").hidden = true;
  $("message").hidden = false;
  $("title").textContent = title;
  $("text").textContent = text;
  $("again").hidden = !again;
}

// Ask until there is an answer: an answer that was kept before the line broke is not kept twice.
async function post(path, body) {
  for (;;) {
    try {
      const reply = await fetch(path, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(body ?? {}),
      });
      if (reply.status < 500) {
        $("notice").textContent = "";
        return { status: reply.status, ...(await reply.json()) };
      }
    } catch { /* no server, or half a reply: try again */ }
    $("notice").textContent = body
      ? "Your answer is not saved yet: the study cannot be reached. Trying again, please leave this page open."
      : "The study cannot be reached. Trying again.";
    await new Promise((done) => setTimeout(done, RETRY));
  }
}

async function next() {
  show(await post(`${rater}/next`));
}

function show(found) {
  if (found.status === 404) {
    $("progress").hidden = true;
    return say("This link is not known", "Please open the link exactly as you got it. If it still does not work, ask whoever sent it.");
  }
  $("progress").hidden = found.total === 0;
  $("bar").max = Math.max(1, found.total);
  $("bar").value = found.done;
  $("count").textContent = `${found.done} of ${found.total} done`;
  if (found.state === "done")
    return say("Thank you!", found.done ? "All your answers are saved. You can close this page." : "There is nothing left to rate: everything has been answered.");
  if (found.state === "wait")
    return say("Nothing for you right now", "What is left is being rated by others. Your answers are saved. Look again in an hour, or close this page.", true);
  trial(found);
}

function trial(found) {
  const survey = SURVEYS[found.survey];
  $("message").hidden = true;
  $("trial").hidden = $("hint").hidden = false;
  $("task").textContent = survey.task;
  $("how").textContent = survey.how;
  const many = found.videos.length > 1;
  $("videos").className = many ? "" : "one";
  $("videos").replaceChildren(...found.videos.map((url, n) => player(url, many ? `Video ${n + 1}` : "Video")));
  $("questions").replaceChildren(...Object.entries(survey.questions).map(([name, text]) => question(name, text, survey.grades)));
  $("trial").onsubmit = (event) => { event.preventDefault(); send(found.trial); };
  check();
  scrollTo(0, 0);
  $("task").focus({ preventScroll: true });
}

function player(url, name) {
  const video = make("video", { src: url, controls: true, playsInline: true, preload: "auto" });
  video.setAttribute("controlslist", "nodownload noplaybackrate noremoteplayback");
  video.setAttribute("aria-label", name);
  video.disablePictureInPicture = true;
  const heard = make("span", { className: "heard", textContent: "not played yet" });
  video.onplay = () => document.querySelectorAll("video").forEach((other) => other !== video && other.pause());
  video.ontimeupdate = video.onended = () => {
    if (heard.classList.contains("yes") || !video.duration) return;
    let played = 0;
    for (let n = 0; n < video.played.length; n++) played += video.played.end(n) - video.played.start(n);
    if (played < HEARD * video.duration) {
      heard.textContent = "play it to the end";
    } else {
      heard.textContent = "played ✓";
      heard.classList.add("yes");
      check();
    }
  };
  video.onerror = () => {
    heard.textContent = "cannot be loaded, trying again";
    setTimeout(() => video.isConnected && video.load(), RETRY);
  };
  video.onloadeddata = () => { if (!heard.classList.contains("yes")) heard.textContent = "not played yet"; };
  return make("figure", {}, video, make("figcaption", {}, name, heard));
}

function question(name, text, grades) {
  const labels = grades.map((grade, n) =>
    make("label", {}, make("input", { type: "radio", name, value: n + 1, onchange: check }), make("span", { textContent: grade })));
  return make("fieldset", { disabled: true }, make("legend", { textContent: text }), make("div", { className: "grades" }, ...labels));
}

function given() {
  const checked = [...document.querySelectorAll("#questions input:checked")];
  return Object.fromEntries(checked.map((input) => [input.name, Number(input.value)]));
}

function check() {
  const heard = [...document.querySelectorAll(".heard")].every((mark) => mark.classList.contains("yes"));
  const sets = [...document.querySelectorAll("#questions fieldset")];
  sets.forEach((set) => { set.disabled = !heard; });
  const missing = sets.length - Object.keys(given()).length;
  $("send").disabled = !heard || missing > 0;
  $("missing").textContent = !heard
    ? (sets.length > 1 ? "Play both videos to the end first." : "Play the video to the end first.")
    : missing ? `${missing} ${missing > 1 ? "questions" : "question"} to answer.` : "";
}

async function send(name) {
  const grades = given();
  document.querySelectorAll("video").forEach((video) => video.pause());
  $("send").disabled = true;
  document.querySelectorAll("#questions fieldset").forEach((set) => { set.disabled = true; });
  const found = await post(`${rater}/${name}/answer`, grades);
  if (found.status === 409) {
    await next();
    $("notice").textContent = found.error;
  } else {
    show(found);
  }
}

// The keys 1 and 2 start and stop the videos.
addEventListener("keydown", (event) => {
  const video = document.querySelectorAll("video")[Number(event.key) - 1];
  if (!video || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  if (video.paused) video.play().catch(() => {}); // not loaded yet: its own line says so
  else video.pause();
});

$("again").onclick = next;
if (rater) next();
else say("You need your own link", "Everybody who takes part gets a link of their own. Please open the one you were given.");
